//! Compiles the protocol. In Rust alone: no `protoc` is needed to build.

use std::error::Error;

const PROTO: &str = "proto/esker/admin/v1/admin.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
