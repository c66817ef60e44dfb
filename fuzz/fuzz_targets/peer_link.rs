#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| esker_fuzz::run("peer_link", data));
