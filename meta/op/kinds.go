package op

import "math"

func (o *EpochBegin) size() int { return 8 + 16 + 2 + 16*len(o.Members) + 16 + 16 + 2 + len(o.Reason) }

func (o *EpochBegin) append(b []byte) []byte {
	b = appendU64(b, o.Epoch)
	b = append(b, o.Primary[:]...)
	b = appendCount(b, len(o.Members))
	for _, m := range o.Members {
		b = append(b, m[:]...)
	}
	b = append(b, o.Nonce[:]...)
	b = append(b, o.Store[:]...)
	return appendText(b, o.Reason)
}

func (o *EpochBegin) decode(d *decoder) {
	o.Epoch = d.u64()
	o.Primary = d.slot()
	n := int(d.u16())
	if n > MaxMembers {
		d.fail("%d members", n)
		return
	}
	if n > 0 {
		o.Members = make([]SlotID, n)
	}
	for i := range o.Members {
		o.Members[i] = d.slot()
	}
	o.Nonce = d.slot()
	o.Store = d.slot()
	o.Reason = d.text(MaxReason)
}

func (o *Mkdir) size() int { return 8 + 1 + len(o.Name) + o.Attr.size() }

func (o *Mkdir) append(b []byte) []byte {
	b = appendID(b, o.Parent)
	b = appendName(b, o.Name)
	return o.Attr.append(b)
}

func (o *Mkdir) decode(d *decoder) {
	o.Parent = d.id()
	o.Name = d.name()
	o.Attr = d.attr()
}

func (o *Create) size() int { return 8 + 1 + len(o.Name) + o.Attr.size() + 2 + len(o.Target) + 4 }

func (o *Create) append(b []byte) []byte {
	b = appendID(b, o.Parent)
	b = appendName(b, o.Name)
	b = o.Attr.append(b)
	b = appendText(b, o.Target)
	return appendU32(b, o.Rdev)
}

func (o *Create) decode(d *decoder) {
	o.Parent = d.id()
	o.Name = d.name()
	o.Attr = d.attr()
	o.Target = d.text(MaxTarget)
	o.Rdev = d.u32()
}

func (o *Put) size() int {
	return 8 + 1 + len(o.Name) + o.Attr.size() + o.Sum.size() + 1 + 8 + 8 + 4 + len(o.Data)
}

func (o *Put) append(b []byte) []byte {
	b = appendID(b, o.Parent)
	b = appendName(b, o.Name)
	b = o.Attr.append(b)
	b = o.Sum.append(b)
	b = appendBool(b, o.Sealed)
	b = appendID(b, o.Victim)
	b = appendU64(b, o.Stage)
	return appendData(b, o.Data)
}

func (o *Put) decode(d *decoder) {
	o.Parent = d.id()
	o.Name = d.name()
	o.Attr = d.attr()
	o.Sum = d.sum()
	o.Sealed = d.bool()
	o.Victim = ID(d.u64())
	o.Stage = d.u64()
	o.Data = d.data(ChunkSize)
	if o.Stage == 0 && int64(len(o.Data)) != o.Sum.Size {
		d.fail("put of %d bytes carries %d", o.Sum.Size, len(o.Data))
	}
	if o.Stage != 0 && len(o.Data) != 0 {
		d.fail("put with both a stage and data")
	}
}

func (o *Chunk) size() int { return 8 + 8 + 4 + len(o.Data) }

func (o *Chunk) append(b []byte) []byte {
	b = appendU64(b, o.Stage)
	b = appendI64(b, o.Off)
	return appendData(b, o.Data)
}

func (o *Chunk) decode(d *decoder) {
	o.Stage = d.u64()
	o.Off = d.natural()
	o.Data = d.data(ChunkSize)
	d.extent(o.Off, int64(len(o.Data)))
}

func (o *Write) size() int { return 8 + 8 + 4 + len(o.Data) }

func (o *Write) append(b []byte) []byte {
	b = appendID(b, o.ID)
	b = appendI64(b, o.Off)
	return appendData(b, o.Data)
}

func (o *Write) decode(d *decoder) {
	o.ID = d.id()
	o.Off = d.natural()
	o.Data = d.data(ChunkSize)
	d.extent(o.Off, int64(len(o.Data)))
}

// extent refuses a range whose end is no file offset.
func (d *decoder) extent(off, n int64) {
	if n < 0 || off > math.MaxInt64-n {
		d.fail("extent past the largest offset")
	}
}

func (o *Truncate) size() int { return 8 + 8 }

func (o *Truncate) append(b []byte) []byte {
	b = appendID(b, o.ID)
	return appendI64(b, o.Size)
}

func (o *Truncate) decode(d *decoder) {
	o.ID = d.id()
	o.Size = d.natural()
}

func (o *Fallocate) size() int { return 8 + 4 + 8 + 8 }

func (o *Fallocate) append(b []byte) []byte {
	b = appendID(b, o.ID)
	b = appendU32(b, o.Mode)
	b = appendI64(b, o.Off)
	return appendI64(b, o.Len)
}

func (o *Fallocate) decode(d *decoder) {
	o.ID = d.id()
	o.Mode = d.u32()
	o.Off = d.natural()
	o.Len = d.natural()
	d.extent(o.Off, o.Len)
}

func (o *SetAttr) size() int { return 8 + 4 + 4 + 4 + 4 + 8 }

func (o *SetAttr) append(b []byte) []byte {
	b = appendID(b, o.ID)
	b = appendU32(b, o.Valid)
	b = appendU32(b, o.Mode)
	b = appendU32(b, o.UID)
	b = appendU32(b, o.GID)
	return appendI64(b, o.Mtime)
}

func (o *SetAttr) decode(d *decoder) {
	o.ID = d.id()
	o.Valid = d.u32()
	o.Mode = d.u32()
	o.UID = d.u32()
	o.GID = d.u32()
	o.Mtime = d.i64()
	if o.Valid&^(SetMode|SetUID|SetGID|SetMtime) != 0 {
		d.fail("setattr of unknown attributes %#x", o.Valid)
	}
}

func (o *SetXattr) size() int { return 8 + 1 + len(o.Name) + 4 + len(o.Value) + 1 }

func (o *SetXattr) append(b []byte) []byte {
	b = appendID(b, o.ID)
	b = appendName(b, o.Name)
	b = appendData(b, o.Value)
	return appendBool(b, o.Remove)
}

func (o *SetXattr) decode(d *decoder) {
	o.ID = d.id()
	o.Name = d.xattrName()
	o.Value = d.data(MaxXattrValue)
	o.Remove = d.bool()
}

func (o *Link) size() int { return 8 + 8 + 1 + len(o.Name) + 8 }

func (o *Link) append(b []byte) []byte {
	b = appendID(b, o.ID)
	b = appendID(b, o.Parent)
	b = appendName(b, o.Name)
	return appendID(b, o.Victim)
}

func (o *Link) decode(d *decoder) {
	o.ID = d.id()
	o.Parent = d.id()
	o.Name = d.name()
	o.Victim = ID(d.u64())
}

func (o *Rename) size() int { return 8 + 8 + 1 + len(o.OldName) + 8 + 1 + len(o.NewName) + 8 + 1 }

func (o *Rename) append(b []byte) []byte {
	b = appendID(b, o.ID)
	b = appendID(b, o.OldParent)
	b = appendName(b, o.OldName)
	b = appendID(b, o.NewParent)
	b = appendName(b, o.NewName)
	b = appendID(b, o.Victim)
	return appendBool(b, o.Exchange)
}

func (o *Rename) decode(d *decoder) {
	o.ID = d.id()
	o.OldParent = d.id()
	o.OldName = d.name()
	o.NewParent = d.id()
	o.NewName = d.name()
	o.Victim = ID(d.u64())
	o.Exchange = d.bool()
	if o.Exchange && o.Victim == 0 {
		d.fail("exchange with nothing")
	}
}

func (o *Unlink) size() int { return 8 + 8 + 1 + len(o.Name) }

func (o *Unlink) append(b []byte) []byte {
	b = appendID(b, o.ID)
	b = appendID(b, o.Parent)
	return appendName(b, o.Name)
}

func (o *Unlink) decode(d *decoder) {
	o.ID = d.id()
	o.Parent = d.id()
	o.Name = d.name()
}

func (o *Seal) size() int { return 8 + 8 + o.Sum.size() }

func (o *Seal) append(b []byte) []byte {
	b = appendID(b, o.ID)
	b = appendU64(b, o.Of)
	return o.Sum.append(b)
}

func (o *Seal) decode(d *decoder) {
	o.ID = d.id()
	o.Of = d.u64()
	o.Sum = d.sum()
}

func (o *Checkpoint) size() int { return 8 + 16 }

func (o *Checkpoint) append(b []byte) []byte {
	b = appendU64(b, o.At)
	b = appendU64(b, o.Digest[0])
	return appendU64(b, o.Digest[1])
}

func (o *Checkpoint) decode(d *decoder) {
	o.At = d.u64()
	o.Digest[0] = d.u64()
	o.Digest[1] = d.u64()
}
