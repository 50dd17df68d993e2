package fs

import (
	"bytes"
	"runtime"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Sizes of what the protocol has before and behind.
const (
	inHeader  = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeader = int(unsafe.Sizeof(fuse.OutHeader{}))
)

// call is one request under way. It lives until it is answered.
type call struct {
	f    *FS
	in   []byte // the request, in small or in memory of its own
	n    int    // bytes of the answer behind its header, if there is no error
	node *node  // of a link: what was linked

	small [16 << 10 / 8]uint64 // words, so that what lies in it is aligned
	out   [512 / 8]uint64      // the answer, unless it is longer
	long  []byte               // the answer then
}

var (
	calls = sync.Pool{New: func() any { return new(call) }}
	// answers are for READs, which seldom ask for more than the read-ahead.
	answers = sync.Pool{New: func() any { b := make([]byte, answerSize); return &b }}
)

const answerSize = 128<<10 + 4096

// words is memory as bytes.
func words(w []uint64) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(&w[0])), 8*len(w)) }

// as is the start of b, which is aligned and long enough, as a T.
func as[T any](b []byte) *T { return (*T)(unsafe.Pointer(unsafe.SliceData(b))) }

func (c *call) header() *fuse.InHeader { return as[fuse.InHeader](c.in) }

// body is where the answer's fixed part goes, zeroed; it has n bytes.
func (c *call) body(n int) []byte {
	b := words(c.out[:])[outHeader : outHeader+n]
	clear(b)
	c.n = n
	return b
}

// name is the string at in[at:]; the next one begins at next.
func (c *call) name(at int) (s string, next int) {
	b := c.in[min(at, len(c.in)):]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return string(b[:i]), at + i + 1
	}
	return string(b), len(c.in)
}

// serve starts to answer requests, which goes on until the mount ends.
func (f *FS) serve() {
	d := f.dev
	d.most = max(1, int32(runtime.GOMAXPROCS(0)/2))
	d.reading.Store(true)
	d.loops.Add(1)
	go f.loop()
	go func() {
		d.loops.Wait()
		d.close()
		close(d.ended)
	}()
}

// mayBlock is called by a request that may be held up: by a disk, by a lock
// that somebody holds who waits, by too much that is not yet applied. Others
// are read meanwhile.
func (f *FS) mayBlock() {
	d := f.dev
	if d.reading.CompareAndSwap(false, true) {
		d.loops.Add(1)
		go f.loop()
	}
}

// loop reads and carries out requests as long as it has the right to read.
func (f *FS) loop() {
	d := f.dev
	defer d.loops.Done()
	for {
		c, err := f.next()
		if err != nil {
			if err != unix.ENODEV {
				f.log.Error("requests cannot be read", keyErr, err)
			}
			return // nobody else need try
		}
		backlog := d.streak > 8
		d.reading.Store(false)
		if d.busy.Add(1) < d.most && backlog {
			f.mayBlock() // there is work for two
		}
		f.carryOut(c)
		d.busy.Add(-1)
		if !d.reading.CompareAndSwap(false, true) {
			return
		}
	}
}

// next reads a request.
func (f *FS) next() (*call, error) {
	d := f.dev
	n, err := d.read()
	if err != nil {
		return nil, err
	}
	c := calls.Get().(*call)
	c.f = f
	if small := words(c.small[:]); n <= len(small) {
		c.in = small[:copy(small, d.big[:n])]
		return c, nil
	}
	c.in, d.big = d.big[:n], nil
	return c, nil
}

// free gives the call's memory back.
func (c *call) free() {
	if c.long != nil && cap(c.long) == answerSize {
		b := c.long[:answerSize]
		answers.Put(&b)
	}
	c.f, c.in, c.long, c.node, c.n = nil, nil, nil, nil, 0
	calls.Put(c)
}

// answer ends the call.
func (c *call) answer(st fuse.Status) {
	f, n := c.f, c.n
	if st != fuse.OK {
		n = 0
	}
	b := words(c.out[:])
	if c.long != nil && n > 0 {
		b = c.long
	}
	h := as[fuse.OutHeader](b)
	h.Length, h.Status, h.Unique = uint32(outHeader+n), -int32(st), c.header().Unique
	err := f.dev.write(b[:outHeader+n])
	if err != nil {
		f.log.Warn("answer refused", keyOp, opName(c.header().Opcode), keyErr, err)
	}
	c.free()
}

// finish answers once w is over; err is what the call came to so far.
func (c *call) finish(w wait, err error) {
	if err == nil && w.kind != waitNone {
		c.f.after(w, c)
		return
	}
	c.Waited(err)
}

// Waited is told by the log how the call's wait ended.
func (c *call) Waited(err error) {
	f := c.f
	if err == nil && c.node != nil { // a link: with an error the kernel takes no reference
		f.once(func() error { c.node.entry(as[fuse.EntryOut](c.body(sizeEntry))); return nil })
	}
	c.answer(f.errno(c.header(), err))
}

// carryOut does what the request asks for, and answers it, or sees to it that
// it is answered.
func (f *FS) carryOut(c *call) {
	defer func() {
		if v := recover(); v != nil {
			c.answer(f.panicked(v))
		}
	}()
	if len(c.in) < inHeader || int(c.header().Length) != len(c.in) || !f.dispatch(c) {
		c.answer(fuse.EIO)
	}
}

// Sizes of what requests have behind their header, and of fixed answers.
const (
	sizeEntry  = int(unsafe.Sizeof(fuse.EntryOut{}))
	sizeAttr   = int(unsafe.Sizeof(fuse.AttrOut{}))
	sizeCreate = int(unsafe.Sizeof(fuse.CreateOut{}))
	sizeWrite  = int(unsafe.Sizeof(fuse.WriteOut{}))
	inWrite    = int(unsafe.Sizeof(fuse.WriteIn{}))
	inCreate   = int(unsafe.Sizeof(fuse.CreateIn{}))
	inLink     = int(unsafe.Sizeof(fuse.LinkIn{}))
	inRename   = inHeader + 8
	inRename2  = int(unsafe.Sizeof(fuse.RenameIn{}))
	inXattr    = inHeader + 8
)

// least is the shortest that a request of an opcode is which dispatch reads by
// itself.
var least = [opcodes]int{
	opForget: int(unsafe.Sizeof(fuse.ForgetIn{})), opGetAttr: int(unsafe.Sizeof(fuse.GetAttrIn{})),
	opSetAttr: int(unsafe.Sizeof(fuse.SetAttrIn{})), opRename: inRename, opRename2: inRename2, opLink: inLink,
	opRead: int(unsafe.Sizeof(fuse.ReadIn{})), opWrite: inWrite, opFsync: int(unsafe.Sizeof(fuse.FsyncIn{})),
	opFsyncDir: int(unsafe.Sizeof(fuse.FsyncIn{})), opCreate: inCreate, opBatchForget: inHeader + 8, opGetXattr: inXattr,
}

// dispatch reads the frequent requests by itself; the others are go-fuse's. It
// returns false for what is no request.
func (f *FS) dispatch(c *call) bool {
	h := c.header()
	if h.Opcode < opcodes && len(c.in) < least[h.Opcode] {
		return false
	}
	switch h.Opcode {
	case opLookup:
		name, _ := c.name(inHeader)
		c.answer(f.Lookup(nil, h, name, as[fuse.EntryOut](c.body(sizeEntry))))
	case opForget:
		f.Forget(h.NodeId, as[fuse.ForgetIn](c.in).Nlookup)
		c.free()
	case opBatchForget:
		f.batchForget(c)
	case opGetAttr:
		c.answer(f.GetAttr(nil, as[fuse.GetAttrIn](c.in), as[fuse.AttrOut](c.body(sizeAttr))))
	case opSetAttr:
		c.finish(f.startSetAttr(as[fuse.SetAttrIn](c.in), as[fuse.AttrOut](c.body(sizeAttr))))
	case opCreate:
		name, _ := c.name(inCreate)
		c.answer(f.Create(nil, as[fuse.CreateIn](c.in), name, as[fuse.CreateOut](c.body(sizeCreate))))
	case opUnlink:
		name, _ := c.name(inHeader)
		c.answer(f.Unlink(nil, h, name))
	case opRename, opRename2:
		f.callRename(c)
	case opLink:
		name, _ := c.name(inLink)
		n, w, err := f.startLink(as[fuse.LinkIn](c.in), name)
		c.node = n
		c.finish(w, err)
	case opRead:
		f.callRead(c)
	case opWrite:
		f.callWrite(c)
	case opFsync:
		c.finish(f.startFsync(as[fuse.FsyncIn](c.in)))
	case opFsyncDir:
		f.enter(h)
		c.finish(f.everything(), nil)
	case opGetXattr:
		f.callGetXattr(c)
	case opInterrupt, opPoll:
		// No wait ends by a signal (see after), and nothing is to be polled:
		// the kernel does not ask again.
		f.enter(h)
		c.answer(fuse.ENOSYS)
	default:
		f.callOther(c)
	}
	return true
}

func (f *FS) batchForget(c *call) {
	list := c.in[inHeader+8:]
	for n := *as[uint32](c.in[inHeader:]); n > 0 && len(list) >= 16; n-- {
		f.Forget(*as[uint64](list), *as[uint64](list[8:]))
		list = list[16:]
	}
	c.free()
}

func (f *FS) callRename(c *call) {
	in := fuse.RenameIn{InHeader: *c.header(), Newdir: *as[uint64](c.in[inHeader:])}
	at := inRename
	if in.Opcode == opRename2 {
		in.Flags = *as[uint32](c.in[inHeader+8:])
		at = inRename2
	}
	oldName, at := c.name(at)
	newName, _ := c.name(at)
	c.finish(f.startRename(&in, oldName, newName))
}

func (f *FS) callRead(c *call) {
	in := as[fuse.ReadIn](c.in)
	size := min(int(in.Size), maxRead)
	c.room(size)
	r, st := f.Read(nil, in, c.long[outHeader:outHeader+size])
	if st == fuse.OK {
		c.n = copyResult(c.long[outHeader:outHeader+size], r)
	}
	c.answer(st)
}

// room makes room for a long answer.
func (c *call) room(n int) {
	if outHeader+n <= answerSize {
		c.long = (*answers.Get().(*[]byte))[:outHeader+n]
		return
	}
	c.long = make([]byte, outHeader+n)
}

// maxRead bounds what a READ or READDIR is answered with; the kernel does not
// ask for more.
const maxRead = maxWrite

// copyResult puts what a read gave into b, where it mostly is already.
func copyResult(b []byte, r fuse.ReadResult) int {
	data, _ := r.Bytes(b)
	if len(data) > 0 && &data[0] != &b[0] {
		copy(b, data)
	}
	return len(data)
}

func (f *FS) callWrite(c *call) {
	in := as[fuse.WriteIn](c.in)
	data := c.in[inWrite:]
	if int(in.Size) > len(data) {
		c.answer(fuse.EIO)
		return
	}
	as[fuse.WriteOut](c.body(sizeWrite)).Size = in.Size
	c.finish(f.startWrite(in, data[:in.Size]))
}

func (f *FS) callGetXattr(c *call) {
	size := int(*as[uint32](c.in[inHeader:]))
	name, _ := c.name(inXattr)
	switch {
	case f.opt.NoXAttr:
		f.enter(c.header())
		c.answer(fuse.ENOSYS)
	case size > 0:
		size = min(size, 64<<10)
		c.room(size)
		n, st := f.GetXAttr(nil, c.header(), name, c.long[outHeader:outHeader+size])
		c.n = int(n)
		c.answer(st)
	default:
		n, st := f.GetXAttr(nil, c.header(), name, nil)
		if st == fuse.Status(unix.ERANGE) {
			st = fuse.OK // the size is what was asked for
		}
		as[fuse.GetXAttrOut](c.body(8)).Size = n
		c.answer(st)
	}
}

// callOther has go-fuse read the request. It may do anything, so others are read
// meanwhile.
func (f *FS) callOther(c *call) {
	f.mayBlock()
	h := c.header()
	size := 1024
	switch h.Opcode {
	case opReadDir, opReadDirPlus:
		if len(c.in) < int(unsafe.Sizeof(fuse.ReadIn{})) {
			c.answer(fuse.EIO)
			return
		}
		size += min(int(as[fuse.ReadIn](c.in).Size), maxRead)
	case opListXattr, opIoctl:
		size += 64 << 10
	case opReadlink:
		size += 4096
	}
	c.room(size)
	n, st := f.proto.HandleRequest([][]byte{c.in}, [][]byte{c.long})
	switch {
	case st != fuse.OK:
		c.answer(st)
	case n == 0: // nothing to answer
		c.free()
	default:
		if err := f.dev.write(c.long[:n]); err != nil {
			f.log.Warn("answer refused", keyOp, opName(h.Opcode), keyErr, err)
		}
		c.free()
	}
}
