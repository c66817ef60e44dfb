//! SIGHUP: the configuration is read anew. What can be changed while the daemon runs is changed;
//! everything else is named, and waits for a restart. A file that is not acceptable changes nothing.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::logging::{self, Logs};

/// Reads the configuration anew and lays it over the running one.
pub async fn reload(args: &Args, running: &mut Config, logs: Option<&Logs>, cluster: &Cluster) {
    if let Err(reason) = try_reload(args, running, logs, cluster).await {
        tracing::error!("the configuration is not reloaded, the old settings stay: {reason}");
    }
}

async fn try_reload(
    args: &Args,
    running: &mut Config,
    logs: Option<&Logs>,
    cluster: &Cluster,
) -> Result<(), String> {
    let wanted = Config::load(args).map_err(|e| e.to_string())?;
    let mut changed = running.live.differences(&wanted.live);
    let needs_restart = running.differences(&wanted);
    // What can be refused comes first, so that a refusal changes nothing.
    logging::filter_of(&wanted.live)?;
    if running.cluster != wanted.cluster && !running.cluster.needs_restart(&wanted.cluster) {
        cluster.reload(&wanted.cluster).await?;
        running.cluster = wanted.cluster;
        changed.push("cluster");
    }
    if running.live.tuning() != wanted.live.tuning() {
        let tuned = cluster.stores().tune(wanted.live.tuning()).await;
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
