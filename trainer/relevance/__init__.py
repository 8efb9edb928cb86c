"""Train the reader that tells whether a rule or a reply is about a conversation."""
