//! Warmpath.
