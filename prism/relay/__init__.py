"""The metering relay, and how it shapes a link."""
