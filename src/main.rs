//! Harbor
fn main() {}
