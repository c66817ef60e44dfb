//! Writes the first inputs of every fuzz target to `fuzz/corpus-seed`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus-seed");
    for (target, _) in esker_fuzz::TARGETS {
        let folder = corpora.join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in (0u32..).zip(esker_fuzz::seeds::of(target)) {
            std::fs::write(folder.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}
