//! HTTP/2 frame by frame, for servers that no sound library would be.
