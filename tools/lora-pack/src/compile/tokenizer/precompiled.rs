//! SentencePiece precompiled character maps: reading and checking.

/// Decodes standard base64 with padding.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for b in digits.bytes() {
        let value = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (bits == 0).then_some(out)
}

/// Checks a character map: length of its units in bytes, then the units, then texts in UTF-8.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return Err("too short".into()) };
    if u32::from_le_bytes(*head) as usize / 4 * 4 > rest.len() || units_len(bytes) == 0 {
        return Err("its units go past its end".into());
    }
    match std::str::from_utf8(&rest[units_len(bytes)..]) {
        Ok(_) => Ok(()),
        Err(_) => Err("its texts are not UTF-8".into()),
    }
}

/// Length in bytes of the units of a checked map.
pub(super) fn units_len(bytes: &[u8]) -> usize {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize / 4 * 4
}
