//! From readings to episodes.
