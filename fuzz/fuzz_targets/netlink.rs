#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| daemoneye_fuzz::netlink(data));
