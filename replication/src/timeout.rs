//! Seeded draws in place of raft-rs's `thread_rng`.

/// SplitMix64 (Steele, Lea, Flood, OOPSLA'14): one well mixed number per input.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The election timeout of a replica, in `[election_ticks, 2 * election_ticks)`. `attempt` counts
/// the elections it started, so that two replicas that collide once do not collide for ever.
pub(crate) fn election_timeout(
    seed: u64,
    replica: u64,
    term: u64,
    attempt: u64,
    election_ticks: usize,
) -> usize {
    let draw = mix(mix(mix(mix(seed) ^ replica) ^ term) ^ attempt);
    let span = esker_base::num::to_u64(election_ticks).max(1);
    election_ticks + esker_base::num::to_usize(draw % span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_fill_their_range_and_depend_on_every_input() {
        let draws: Vec<usize> = (0..200).map(|a| election_timeout(1, 2, 3, a, 10)).collect();
        assert!(draws.iter().all(|t| (10..20).contains(t)));
        assert!((10..20).all(|t| draws.contains(&t)));
        let of = |seed, replica, term| {
            (0..8)
                .map(|a| election_timeout(seed, replica, term, a, 1000))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(1, 2, 3), of(1, 2, 3));
        assert!(of(1, 2, 3) != of(2, 2, 3) && of(1, 2, 3) != of(1, 3, 3));
        assert_ne!(of(1, 2, 3), of(1, 2, 4));
    }
}
