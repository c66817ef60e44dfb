//! SIGHUP: the configuration is read anew. What can be changed while the daemon runs is changed;
//! everything else is named, and waits for a restart. A file that is not acceptable changes nothing.

use crate::args::Args;
use crate::config::Config;
use crate::logging::{self, Logs};
use crate::stores::Stores;

/// Reads the configuration anew and lays it over the running one.
pub async fn reload(args: &Args, running: &mut Config, logs: Option<&Logs>, stores: &Stores) {
    if let Err(reason) = try_reload(args, running, logs, stores).await {
        tracing::error!("the configuration is not reloaded, the old settings stay: {reason}");
    }
}

async fn try_reload(
    args: &Args,
    running: &mut Config,
    logs: Option<&Logs>,
    stores: &Stores,
) -> Result<(), String> {
    let wanted = Config::load(args).map_err(|e| e.to_string())?;
    let changed = running.live.differences(&wanted.live);
    let needs_restart = running.differences(&wanted);
    // What can be refused comes first, so that a refusal changes nothing.
    logging::filter_of(&wanted.live)?;
    if running.live.tuning() != wanted.live.tuning() {
        let tuned = stores.tune(wanted.live.tuning()).await;
        tuned.map_err(|e| e.to_string())?;
    }
    if let Some(logs) = logs {
        logs.change(&wanted.live)?;
    }
    running.live = wanted.live;
    if changed.contains(&"log") && logging::rust_log().is_some() {
        tracing::warn!("the setting `log` has no effect: RUST_LOG is set");
    }
    let none = || "none".to_string();
    let list = |keys: Vec<&str>| match keys.is_empty() {
        true => none(),
        false => keys.join(", "),
    };
    tracing::info!(
        changed = list(changed),
        needs_restart = list(needs_restart),
        "the configuration is reloaded"
    );
    Ok(())
}
