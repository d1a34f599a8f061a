//! Placeholder for the first slice.
