//! Metrics of the links to other nodes.

use super::table::{Family, Kind, Source};
use super::{Labels, Scraped, Series, Value};
use esker_base::NodeId;
use esker_runtime::peers::{PeerCounts, DROP_REASONS};

/// All of them.
pub(super) fn families() -> Vec<Family> {
    vec![
        family(
            "esker_peer_links",
            Kind::Gauge,
            |scraped, series| {
                by_direction(scraped, series, |peer| (peer.links, peer.links_in));
            },
            "Links between this node and another (`node`) that are up, by `direction`: `out` for frames that leave, `in` for \
             those that come.",
        ),
        family(
            "esker_peer_bytes",
            Kind::Counter,
            |scraped, series| {
                by_direction(scraped, series, |peer| (peer.sent_bytes, peer.received_bytes));
            },
            "Bytes on links with another node, by `direction`; with TLS, sealed.",
        ),
        family(
            "esker_peer_frames",
            Kind::Counter,
            |scraped, series| {
                by_direction(scraped, series, |peer| (peer.sent_frames, peer.received_frames));
            },
            "Frames on links with another node, by `direction`.",
        ),
        family(
            "esker_peer_link_failures",
            Kind::Counter,
            |scraped, series| {
                for (node, peer) in &scraped.peers {
                    series.add(vec![of(*node)], Value::Number(peer.failures));
                }
            },
            "Times that a link to another node broke or could not be made.",
        ),
        family(
            "esker_peer_frames_dropped",
            Kind::Counter,
            |scraped, series| {
                for (node, peer) in &scraped.peers {
                    for (reason, count) in DROP_REASONS.iter().zip(peer.dropped) {
                        let labels = vec![of(*node), ("reason", (*reason).to_string())];
                        series.add(labels, Value::Number(count));
                    }
                }
            },
            "Frames that were dropped, by `reason`; replicas make up for it. Those for nodes that are no members are under the \
             node `unknown`.",
        ),
        family(
            "esker_peer_links_refused",
            Kind::Counter,
            |scraped, series| series.add(vec![], Value::Number(scraped.links_refused)),
            "Links that were begun with this node and refused; the log says why.",
        ),
    ]
}

fn family(
    name: &'static str,
    kind: Kind,
    read: fn(&Scraped, &mut Series<'_>),
    help: &'static str,
) -> Family {
    Family {
        name,
        kind,
        help,
        source: Source::Node(read),
        bounds: Vec::new(),
    }
}

fn of(node: NodeId) -> (&'static str, String) {
    let name = match node.0 {
        0 => "unknown".to_string(),
        number => number.to_string(),
    };
    ("node", name)
}

fn by_direction(scraped: &Scraped, series: &mut Series<'_>, read: fn(&PeerCounts) -> (u64, u64)) {
    for (node, peer) in scraped.peers.iter().filter(|(node, _)| node.0 != 0) {
        let (out, into) = read(peer);
        for (direction, count) in [("out", out), ("in", into)] {
            let labels: Labels = vec![of(*node), ("direction", direction.to_string())];
            series.add(labels, Value::Number(count));
        }
    }
}
