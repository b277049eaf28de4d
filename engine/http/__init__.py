"""HTTP/1.1 on h11 with what Docker's clients need: hijack, half-close, chunked streams, disconnect detection."""
