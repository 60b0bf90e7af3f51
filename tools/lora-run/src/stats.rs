//! The numbers that are told about a run.

use std::time::Duration;

/// Most bytes of memory that this process has held, mapped file pages included; `None` where the system does not say.
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    memory_field(&status, "VmHWM:")
}

/// Bytes of memory that programs can still take; `None` where the system does not say.
pub fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    memory_field(&info, "MemAvailable:")
}

fn memory_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Milliseconds with three digits after the point.
pub fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

/// Things per second, 0 where nothing was done.
pub fn per_second(count: usize, time: Duration) -> f64 {
    if count == 0 || time.is_zero() { 0.0 } else { (count as f64 / time.as_secs_f64() * 100.0).round() / 100.0 }
}

/// `bytes` for people.
pub fn human(bytes: u64) -> String {
    let b = bytes as f64;
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", b / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", b / 1e6),
        _ => format!("{:.1} GB", b / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let text = "Name:\tx\nVmPeak:\t  300 kB\nVmHWM:\t    123 kB\n";
        assert_eq!(memory_field(text, "VmHWM:"), Some(123 * 1024));
        assert_eq!(memory_field(text, "VmSwap:"), None);
        #[cfg(target_os = "linux")]
        assert!(peak_rss().unwrap() > 100_000 && available_memory().is_some());
    }

    #[test]
    fn rates() {
        assert_eq!(per_second(10, Duration::from_millis(500)), 20.0);
        assert_eq!(per_second(0, Duration::from_millis(500)), 0.0);
        assert_eq!(per_second(5, Duration::ZERO), 0.0);
        assert_eq!(ms(Duration::from_micros(1500)), 1.5);
    }
}
