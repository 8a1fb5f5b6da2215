//! From a topic and bytes to readings, or to the reason why not; one file per payload format.
