//! Figures as people read them.

use super::statistics::Summary;

/// Three digits that count, and commas between thousands.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 99.95 {
        return thousands(value);
    }
    let digits = match size {
        _ if size >= 9.995 => 1,
        _ if size >= 0.0995 || size == 0.0 => 2,
        _ if size >= 0.00995 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

/// Median and range.
pub fn range(summary: &Summary) -> String {
    format!("{} [{}..{}]", number(summary.median), number(summary.min), number(summary.max))
}

/// The 95 % interval of the median, or a dash.
pub fn interval(summary: &Summary) -> String {
    summary.interval.map_or_else(|| "–".into(), |(low, high)| format!("{} to {}", number(low), number(high)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_that_count() {
        #[track_caller]
        fn check(value: f64, expect: &str) {
            assert_eq!(number(value), expect);
        }
        check(0.0, "0.00");
        check(0.00123, "0.0012");
        check(0.0456, "0.046");
        check(0.612, "0.61");
        check(1.0, "1.00");
        check(9.99, "9.99");
        check(12.34, "12.3");
        check(99.97, "100");
        check(159_123.4, "159,123");
        check(-1_234_567.0, "-1,234,567");
    }
}
