//! Building the hash of merges.

use lora_runtime::tokenizer::layout::{NONE, pair_bucket, pair_hash, pair_slot};

/// A merge: left, right, rank, result.
pub(super) type Merge = [u32; 4];

/// Pilots and slots as the blob holds them: every pair hashes to its own slot, given the pilot of its bucket.
pub(super) fn build(merges: &[Merge]) -> Option<(Vec<u8>, Vec<u8>)> {
    if merges.is_empty() {
        return Some((Vec::new(), Vec::new()));
    }
    let mut slots = merges.len() + merges.len() / 8 + 1;
    for attempt in 1..8 {
        // Another number of buckets separates pairs whose hashes agree in the half that picks the slot.
        if let Some((pilots, table)) = place(merges, merges.len() / 4 + attempt, slots) {
            let pilots = pilots.iter().flat_map(|p| p.to_le_bytes()).collect();
            let table = table.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
            return Some((pilots, table));
        }
        slots += slots / 8 + 1;
    }
    None
}

fn place(merges: &[Merge], buckets: usize, slots: usize) -> Option<(Vec<u16>, Vec<Merge>)> {
    let mut members: Vec<Vec<(u64, &Merge)>> = vec![Vec::new(); buckets];
    for merge in merges {
        let hash = pair_hash(merge[0], merge[1]);
        members[pair_bucket(hash, buckets)].push((hash, merge));
    }
    // Full buckets first, while there is room.
    let mut order: Vec<usize> = (0..buckets).collect();
    order.sort_by_key(|b| (std::cmp::Reverse(members[*b].len()), *b));
    let mut pilots = vec![0; buckets];
    // The runtime judges the results of all slots at once, so that free ones hold a result that is in range.
    let mut table = vec![[NONE, 0, 0, 0]; slots];
    for bucket in order {
        let found = (0..=u16::MAX).find_map(|pilot| {
            let mut places: Vec<usize> = members[bucket].iter().map(|m| pair_slot(m.0, pilot, slots)).collect();
            let free = places.iter().all(|p| table[*p][0] == NONE);
            let taken = places.clone();
            places.sort_unstable();
            places.dedup();
            (free && places.len() == taken.len()).then_some((pilot, taken))
        });
        let (pilot, places) = found?;
        pilots[bucket] = pilot;
        for (place, (_, merge)) in places.into_iter().zip(&members[bucket]) {
            table[place] = **merge;
        }
    }
    Some((pilots, table))
}
