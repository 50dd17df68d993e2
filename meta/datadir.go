package meta

// Dir is the slot's data directory.
func (s *Slot) Dir() string { return s.dir }
