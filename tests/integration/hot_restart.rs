//! A running node that hands over to a new process.

mod failures;
mod flows;
mod kept;
mod stand_in;
mod steady;
