//! `rings ours|tokio-uring FILE SIZE_BYTES ADDRESS`: serves FILE over NBD at a TCP address (our ring
//! also at FILE.sock) until it is killed. `benches/rings.py` runs both and compares them.

mod machine;
mod tokio_ring;

use esker_runtime::{Listener, LoopConfig, StoreFile};
use std::path::Path;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, which, path, size, address] = args.as_slice() else {
        eprintln!("usage: rings ours|tokio-uring FILE SIZE_BYTES ADDRESS");
        std::process::exit(2);
    };
    let size_bytes: u64 = size.parse().expect("a size in bytes");
    if which == "tokio-uring" {
        return tokio_ring::serve(Path::new(path), size_bytes, address);
    }
    let store = StoreFile::open(Path::new(path)).expect("the file opens");
    let tcp = Listener::tcp(address.parse().expect("an address")).expect("binds");
    println!("ready {}", address);
    let (_, thread) = esker_runtime::spawn(
        LoopConfig::new(0),
        store,
        vec![tcp],
        move |_, _, _| machine::Direct::new(size_bytes),
        Box::new(|message| eprintln!("{message:?}")),
    )
    .expect("starts");
    thread.join().expect("ends");
}
