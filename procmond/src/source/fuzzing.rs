//! What the fuzz targets (`fuzz/`) see of the sources' inside. Compiled for them only.

pub use super::netlink::fuzzing::{Told, Used, told, used};
