//! daemoneye-agent.

fn main() {}
