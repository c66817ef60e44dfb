//! The configuration file, and the sizes and addresses in it.

use esker_api::size;
use esker_daemon::config::{Config, ConfigError, ListenOn, NbdOn};
use std::path::Path;
use std::str::FromStr;

/// Any text as a configuration file, as a size and as an address.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Config::of_text(Path::new("/etc/esker/esker.toml"), text) {
        Ok(config) => {
            assert!(config.data.is_absolute() && !config.stores.is_empty());
            assert!(config
                .store_size_bytes
                .is_none_or(|bytes| bytes > 0 && bytes % 4096 == 0));
            let metrics = &config.metrics;
            assert_eq!(
                ListenOn::from_str(&metrics.to_string()).as_ref(),
                Ok(metrics)
            );
            for nbd in &config.nbd {
                assert_eq!(NbdOn::from_str(&nbd.to_string()).as_ref(), Ok(nbd));
            }
        }
        Err(error) => {
            let lines = text.lines().count().max(1) + 1;
            if let ConfigError::Line { line, .. } = &error {
                assert!((1..=lines).contains(line), "line {line} of {lines}");
            }
            let message = error.to_string();
            assert!(
                !message.is_empty() && !message.contains('\n'),
                "{message:?}"
            );
        }
    }
    if let Ok(bytes) = size::parse(text) {
        assert_eq!(size::parse(&bytes.to_string()), Ok(bytes));
        let shown = size::format(bytes);
        assert!(!shown.is_empty());
    }
    if let Ok(listen) = ListenOn::from_str(text) {
        assert_eq!(ListenOn::from_str(&listen.to_string()), Ok(listen));
    }
}
