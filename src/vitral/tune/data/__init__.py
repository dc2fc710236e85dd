"""From files of any usual shape to rows of ids that say which of them carry loss; nothing is dropped in silence."""
