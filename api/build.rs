//! Compiles the protocol. In Rust alone: no `protoc` is needed to build.

use std::error::Error;

const PROTOS: [&str; 2] = [
    "proto/esker/admin/v1/admin.proto",
    "proto/esker/cluster/v1/members.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
