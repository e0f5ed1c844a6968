//! How many descriptors this process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit of open descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// What it was when the process started.
    pub before: u64,
    /// What holds now.
    pub now: u64,
}

/// Raises this process's limit as far as it may without privileges; on Linux the default is far below that.
pub fn raise_descriptor_limit() -> DescriptorLimit {
    let limit = getrlimit(Resource::Nofile);
    let before = limit.current.unwrap_or(u64::MAX);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => before,
    };
    DescriptorLimit { before, now }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_can_be_raised_to_what_is_allowed_and_no_further() {
        let first = raise_descriptor_limit();
        assert!(first.now >= first.before);
        assert_eq!(raise_descriptor_limit(), DescriptorLimit { before: first.now, now: first.now });
    }
}
