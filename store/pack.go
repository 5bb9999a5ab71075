package store

import (
	"encoding/binary"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/baton-cluster/baton/wire"
)

// Most sessions are at rest most of the time: nobody is attached. As a row of
// structs and slices one takes several times the bytes that it holds, in a dozen
// pieces for the collector to visit. So the table keeps a session at rest packed,
// as one string, which is unpacked for whoever looks at it. Nothing but this file
// knows the format, and nothing outside the process ever sees it.

const (
	// packedMax is how many bytes a session at rest may be charged, besides the
	// fixed charge, to be packed: a larger one has little to gain, and packing must
	// not add to what an entry costs (S6).
	packedMax = 4096
	// genLoose is the generation of a row just unpacked, which only its caller has.
	genLoose = 0
)

// slot is the table's entry of a session: exactly one of the two is set. Its id is
// either's; a packed one begins with it.
type slot struct {
	packed string
	live   *row
}

func (e slot) id() string {
	if e.live != nil {
		return e.live.id
	}
	n := int(e.packed[0])
	return e.packed[1 : 1+n]
}

func lessSlot(a, b slot) bool { return a.id() < b.id() }

// unpacked is the session of an entry, to be read. To change it, use edit.
func (s *Store) unpacked(e slot) *row {
	if e.live != nil {
		return e.live
	}
	return unpack(e.packed, s.names.list)
}

// put makes r the table's row of its session, packed if it is at rest. It returns the
// id by which to index it: a packed row's is part of it, and takes no memory.
func (s *Store) put(r *row) string {
	e := slot{live: r}
	if !r.attached() && r.bytes <= wire.SessionBytesFixed+packedMax {
		s.scratch = r.pack(s.scratch[:0], &s.names)
		e = slot{packed: string(s.scratch)}
	}
	s.sessions.Set(e)
	return e.id()
}

// names numbers the workers that packed rows name. There are few, and each for long.
type names struct {
	list []string // only ever grows, so whoever has it may go on reading
	by   map[string]uint64
}

func (n *names) number(worker string) uint64 {
	i, ok := n.by[worker]
	if !ok {
		if n.by == nil {
			n.by = map[string]uint64{}
		}
		worker = strings.Clone(worker)
		i = uint64(len(n.list))
		n.list, n.by[worker] = append(n.list, worker), i
	}
	return i
}

// What history says of most sessions is said in one byte.
const (
	historyOwned  = 1 << iota // the owner is the row's
	historyOpened             // the reason is reasonOpened
)

func appendString(b []byte, v string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func (n *names) appendOwner(b []byte, o owner) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, n.number(o.worker)), o.incarnation)
}

// pack appends everything of the row that cannot be worked out from the rest.
func (r *row) pack(b []byte, n *names) []byte {
	b = append(b, byte(len(r.id))) // at most wire.SessionIDBytesMax, which a byte holds
	b = append(b, r.id...)
	b = appendBytes(b, r.secretHash)
	b = appendBytes(b, r.nonce)
	b = n.appendOwner(b, r.owner)
	shared := uint64(0)
	if r.shared {
		shared = 1
	}
	for _, v := range [...]uint64{
		shared, r.ttlUS, r.openDeadlineUS, r.epoch, r.attachHigh, r.expiresUS, r.pushNext, r.change, r.migration,
	} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.AppendUvarint(b, uint64(len(r.state)))
	for i := range r.state {
		b = appendString(b, r.state[i].key)
		b = appendBytes(b, r.state[i].value)
	}
	b = binary.AppendUvarint(b, uint64(len(r.windows)))
	for i := range r.windows {
		b = r.windows[i].pack(b)
	}
	b = binary.AppendUvarint(b, uint64(len(r.outbox)))
	for i := range r.outbox {
		b = binary.AppendUvarint(b, r.outbox[i].seq)
		b = appendBytes(b, r.outbox[i].payload)
	}
	b = binary.AppendUvarint(b, uint64(len(r.history)))
	for i := range r.history {
		b = r.history[i].pack(b, r.owner, n)
	}
	return b
}

func (w *window) pack(b []byte) []byte {
	b = appendString(b, w.client)
	for _, v := range [...]uint64{w.last, w.ack, w.pushAck, w.attached, uint64(len(w.replies))} {
		b = binary.AppendUvarint(b, v)
	}
	for i := range w.replies {
		p := &w.replies[i]
		b = binary.AppendUvarint(b, p.seq)
		b = binary.AppendVarint(b, int64(p.code))
		b = appendString(b, p.message)
		b = appendBytes(b, p.payload)
		b = binary.BigEndian.AppendUint64(b, p.digest)
	}
	return b
}

func (c *ownerChange) pack(b []byte, current owner, n *names) []byte {
	flags := byte(0)
	if c.owner == current {
		flags |= historyOwned
	}
	if c.reason == reasonOpened {
		flags |= historyOpened
	}
	b = append(b, flags)
	if flags&historyOwned == 0 {
		b = n.appendOwner(b, c.owner)
	}
	if flags&historyOpened == 0 {
		b = appendString(b, c.reason)
	}
	b = binary.AppendUvarint(b, n.number(c.from))
	b = appendString(b, c.by)
	b = binary.AppendVarint(b, c.wallUS)
	for _, v := range [...]uint64{c.epoch, c.index, c.migration, c.pauseUS} {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// unpacker reads what pack wrote, in its order. Strings share its memory.
type unpacker struct {
	b     string
	names []string
	// scratch, where set, has the bytes of all that is read. Byte strings share it, and
	// nothing of the row is to be kept.
	scratch []byte
}

func (u *unpacker) uint() (v uint64) {
	for shift := 0; ; shift += 7 {
		c := u.b[0]
		u.b = u.b[1:]
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
}

func (u *unpacker) int() int64 {
	v := u.uint()
	return int64(v>>1) ^ -int64(v&1)
}

func (u *unpacker) fixed() (v uint64) {
	for i := range 8 {
		v = v<<8 | uint64(u.b[i])
	}
	u.b = u.b[8:]
	return v
}

func (u *unpacker) string() string { return u.take(int(u.uint())) }

func (u *unpacker) take(n int) string {
	v := u.b[:n]
	u.b = u.b[n:]
	return v
}

// bytes tells none from empty no more than protobuf does.
func (u *unpacker) bytes() []byte {
	v := u.string()
	switch {
	case v == "":
		return nil
	case u.scratch != nil:
		end := len(u.scratch) - len(u.b)
		return u.scratch[end-len(v) : end]
	}
	return []byte(v)
}

func (u *unpacker) worker() string { return u.names[u.uint()] }

func (u *unpacker) owner() owner { return owner{u.worker(), u.uint()} }

// unpack is the inverse of pack, but for the hashes, which readers do not need:
// see rehashAll.
func unpack(packed string, workers []string) *row {
	r := &row{gen: genLoose}
	r.unpack(unpacker{b: packed, names: workers})
	return r
}

// scanner reads one row after the other without taking memory for each.
type scanner struct {
	names []string
	r     row
	bytes []byte
}

// row is valid until the next.
func (c *scanner) row(e slot) *row {
	if e.live != nil {
		return e.live
	}
	c.bytes = append(c.bytes[:0], e.packed...)
	r := &c.r
	*r = row{gen: genLoose, state: r.state, windows: r.windows, outbox: r.outbox, history: r.history}
	r.unpack(unpacker{b: e.packed, names: c.names, scratch: c.bytes})
	return r
}

// sized is s with n elements, whose content is of no account.
func sized[T any](s []T, n uint64) []T {
	if uint64(cap(s)) < n {
		return make([]T, n)
	}
	return s[:n]
}

func (r *row) unpack(u unpacker) {
	r.bytes = wire.SessionBytesFixed
	r.id = u.take(int(u.take(1)[0]))
	if u.scratch == nil {
		r.id = strings.Clone(r.id) // records and indexes that have it must not keep all of the row
	}
	r.charge(len(r.id))
	r.secretHash = u.bytes()
	r.nonce = u.bytes()
	r.owner = u.owner()
	r.shared = u.uint() == 1
	r.ttlUS = u.uint()
	r.openDeadlineUS = u.uint()
	r.epoch = u.uint()
	r.attachHigh = u.uint()
	r.expiresUS = u.uint()
	r.pushNext = u.uint()
	r.change = u.uint()
	r.migration = u.uint()
	r.state = sized(r.state, u.uint())
	for i := range r.state {
		e := &r.state[i]
		e.key, e.value = u.string(), u.bytes()
		r.stateBytes += EntryBytes(e.key, e.value)
	}
	r.charge(r.stateBytes)
	r.windows = sized(r.windows, u.uint())
	for i := range r.windows {
		r.unpackWindow(&u, &r.windows[i])
	}
	r.outbox = sized(r.outbox, u.uint())
	for i := range r.outbox {
		p := &r.outbox[i]
		p.seq, p.payload = u.uint(), u.bytes()
		r.outboxBytes += len(p.payload)
		r.charge(pushCharge(p.payload))
	}
	r.history = sized(r.history, u.uint())
	for i := range r.history {
		r.history[i].unpack(&u, r.owner)
	}
}

func (r *row) unpackWindow(u *unpacker, w *window) {
	w.client = u.string()
	w.last, w.ack, w.pushAck, w.attached = u.uint(), u.uint(), u.uint(), u.uint()
	r.charge(windowBytes(w.client))
	w.replies = sized(w.replies, u.uint())
	for i := range w.replies {
		p := &w.replies[i]
		p.seq = u.uint()
		p.code = wire.Code(u.int())
		p.message, p.payload = u.string(), u.bytes()
		p.digest = u.fixed()
		r.replyCount++
		r.replyBytes += p.size()
		r.charge(replyCharge(p))
	}
}

func (c *ownerChange) unpack(u *unpacker, current owner) {
	flags := u.take(1)[0]
	c.owner, c.reason = current, reasonOpened
	if flags&historyOwned == 0 {
		c.owner = u.owner()
	}
	if flags&historyOpened == 0 {
		c.reason = u.string()
	}
	c.from, c.by = u.worker(), u.string()
	c.wallUS = u.int()
	c.epoch, c.index, c.migration, c.pauseUS = u.uint(), u.uint(), u.uint(), u.uint()
}

// rehashAll works out the hashes of an unpacked row, which is to be changed.
func (r *row) rehashAll(h *hasher) {
	r.seed = xxhash.Sum64String(r.id)
	r.parts = 0
	for i := range r.state {
		e := &r.state[i]
		e.sum = h.entry(r, e.key, e.value)
		r.rehash(0, e.sum)
	}
	for i := range r.windows {
		w := &r.windows[i]
		w.sum = h.window(r, w)
		r.rehash(0, w.sum)
		for j := range w.replies {
			p := &w.replies[j]
			p.sum = h.reply(r, w.client, p)
			r.rehash(0, p.sum)
		}
	}
	for i := range r.outbox {
		p := &r.outbox[i]
		p.sum = h.push(r, p.seq, p.payload)
		r.rehash(0, p.sum)
	}
	for i := range r.history {
		c := &r.history[i]
		c.sum = h.ownerChange(r, c)
		r.rehash(0, c.sum)
	}
	r.hash = h.row(r)
}
