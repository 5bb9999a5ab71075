package store

import (
	"slices"
	"sort"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/baton-cluster/baton/wire"
)

// owner names one incarnation of one worker.
type owner struct {
	worker      string
	incarnation uint64
}

func ownerOf(o *wire.Owner) owner { return owner{o.GetWorker(), o.GetIncarnation()} }

func (o owner) proto() *wire.Owner {
	return &wire.Owner{Worker: o.worker, Incarnation: o.incarnation}
}

type attachment struct {
	number uint64
	client string
}

// entry is one key and value of a session's state. value is never modified.
type entry struct {
	key   string
	value []byte
	sum   uint64
}

type cachedReply struct {
	seq     uint64
	code    wire.Code
	message string
	payload []byte
	digest  uint64
	sum     uint64
}

func (p *cachedReply) proto() *wire.Reply {
	return &wire.Reply{Seq: p.seq, Code: p.code, Message: p.message, Payload: p.payload}
}

func (p *cachedReply) size() int { return len(p.message) + len(p.payload) }

// window is what makes one client instance's requests exactly-once. Invariant:
// replies are by rising seq, all in [ack, last].
type window struct {
	client   string
	last     uint64
	ack      uint64
	pushAck  uint64
	attached uint64 // position of its last Attach
	replies  []cachedReply
	sum      uint64 // of the window without its replies
}

type push struct {
	seq     uint64
	payload []byte
	sum     uint64
}

type ownerChange struct {
	epoch     uint64
	owner     owner
	from      string
	index     uint64
	wallUS    int64
	reason    string
	by        string
	migration uint64
	pauseUS   uint64
	sum       uint64
}

// row is a session. Slices are modified in place by the generation that owns
// the row, so that a snapshot's rows are never touched; strings and byte slices
// are immutable and shared.
type row struct {
	gen  uint64
	seed uint64 // hash of the id, to seed its parts' hashes

	id             string
	secretHash     []byte
	ttlUS          uint64
	shared         bool
	nonce          []byte
	openDeadlineUS uint64
	owner          owner
	epoch          uint64
	// attachments are by rising number. Invariant: each one's client has a
	// window; expiresUS is 0 exactly when there is one (S8).
	attachments []attachment
	attachHigh  uint64
	expiresUS   uint64
	state       []entry  // by rising key
	windows     []window // by rising client
	outbox      []push   // by rising seq
	pushNext    uint64
	change      uint64
	history     []ownerChange // oldest first
	// migration is the one that is begun and neither pivoted nor ended, or 0 (H3).
	migration uint64
	bytes     uint64

	// Derived from the above; kept so that limits cost nothing to check.
	stateBytes  int
	replyCount  int
	replyBytes  int
	outboxBytes int

	parts uint64 // xor of the sums of state, windows, replies, outbox, history
	hash  uint64 // of the whole row, as it is in Store.sum
}

// forRow makes the search key for a session id.
func forRow(id string) *row { return &row{id: id} }

func newRow(id string) *row {
	return &row{id: id, seed: xxhash.Sum64String(id), bytes: wire.SessionBytesFixed, pushNext: 1}
}

// clone copies all that is modified in place.
func (r *row) clone(gen uint64) *row {
	c := *r
	c.gen = gen
	c.attachments = slices.Clone(r.attachments)
	c.state = slices.Clone(r.state)
	c.windows = slices.Clone(r.windows)
	for i := range c.windows {
		c.windows[i].replies = slices.Clone(c.windows[i].replies)
	}
	c.outbox = slices.Clone(r.outbox)
	c.history = slices.Clone(r.history)
	return &c
}

// shrink gives up memory that an attached session uses and one at rest does not.
func (r *row) shrink() {
	r.attachments = nil
	for i := range r.windows {
		r.windows[i].replies = fitted(r.windows[i].replies)
	}
	r.outbox = fitted(r.outbox)
}

// fitted is s in memory of its own size.
func fitted[T any](s []T) []T {
	if len(s) == cap(s) {
		return s
	}
	return append([]T(nil), s...)
}

func (r *row) attached() bool { return len(r.attachments) > 0 }

func (r *row) attachmentOf(client string) (int, bool) {
	for i := range r.attachments {
		if r.attachments[i].client == client {
			return i, true
		}
	}
	return 0, false
}

func (r *row) isAttached(client string) bool {
	_, ok := r.attachmentOf(client)
	return ok
}

func (r *row) findWindow(client string) (int, bool) {
	return slices.BinarySearchFunc(r.windows, client, func(w window, c string) int {
		return strings.Compare(w.client, c)
	})
}

// window returns the client's window, to be read, or nil.
func (r *row) window(client string) *window {
	if i, ok := r.findWindow(client); ok {
		return &r.windows[i]
	}
	return nil
}

func (r *row) findEntry(key string) (int, bool) {
	return slices.BinarySearchFunc(r.state, key, func(e entry, k string) int {
		return strings.Compare(e.key, k)
	})
}

func (w *window) findReply(seq uint64) (int, bool) {
	i := sort.Search(len(w.replies), func(i int) bool { return w.replies[i].seq >= seq })
	return i, i < len(w.replies) && w.replies[i].seq == seq
}

// What each part of a row is charged against limits and byte budget. The
// overhead makes small parts pay for their bookkeeping.

// EntryBytes is what a key and its value count towards wire.StateBytesMax and
// the byte budget.
func EntryBytes(key string, value []byte) int {
	return len(key) + len(value) + wire.EntryOverheadBytes
}

func windowBytes(client string) int     { return len(client) + wire.EntryOverheadBytes }
func replyCharge(p *cachedReply) int    { return p.size() + wire.EntryOverheadBytes }
func pushCharge(payload []byte) int     { return len(payload) + wire.EntryOverheadBytes }
func (r *row) charge(n int)             { r.bytes += uint64(n) }
func (r *row) discharge(n int)          { r.bytes -= uint64(n) }
func (r *row) rehash(old, fresh uint64) { r.parts ^= old ^ fresh }

// The methods below modify a row that edit returned, and keep sums and sizes.

// setEntries writes changes, which are by rising key, each key once.
func (r *row) setEntries(h *hasher, changes []*wire.Change) {
	const mergeFrom = 8 // from here one merge is cheaper than moving the tail each time
	if len(changes) < mergeFrom {
		for _, c := range changes {
			i, ok := r.findEntry(c.GetKey())
			if ok {
				r.dropEntry(&r.state[i])
			}
			switch {
			case c.GetDelete() && ok:
				r.state = slices.Delete(r.state, i, i+1)
			case c.GetDelete():
			case ok:
				r.state[i] = r.newEntry(h, c)
			default:
				r.state = slices.Insert(r.state, i, r.newEntry(h, c))
			}
		}
		return
	}
	merged := make([]entry, 0, len(r.state)+len(changes))
	i := 0
	for _, c := range changes {
		for i < len(r.state) && r.state[i].key < c.GetKey() {
			merged = append(merged, r.state[i])
			i++
		}
		if i < len(r.state) && r.state[i].key == c.GetKey() {
			r.dropEntry(&r.state[i])
			i++
		}
		if !c.GetDelete() {
			merged = append(merged, r.newEntry(h, c))
		}
	}
	r.state = append(merged, r.state[i:]...)
}

func (r *row) newEntry(h *hasher, c *wire.Change) entry {
	e := entry{key: c.GetKey(), value: c.GetValue()}
	e.sum = h.entry(r, e.key, e.value)
	n := EntryBytes(e.key, e.value)
	r.stateBytes += n
	r.charge(n)
	r.rehash(0, e.sum)
	return e
}

func (r *row) dropEntry(e *entry) {
	n := EntryBytes(e.key, e.value)
	r.stateBytes -= n
	r.discharge(n)
	r.rehash(e.sum, 0)
}

// addWindow makes the client's window. The caller checked that it has none.
func (r *row) addWindow(h *hasher, w window) *window {
	w.sum = h.window(r, &w)
	r.charge(windowBytes(w.client))
	r.rehash(0, w.sum)
	i, _ := r.findWindow(w.client)
	r.windows = slices.Insert(r.windows, i, w)
	return &r.windows[i]
}

// dropWindow forgets a client instance: it will be told CLIENT_GONE.
func (r *row) dropWindow(client string) {
	i, ok := r.findWindow(client)
	if !ok {
		return
	}
	w := &r.windows[i]
	r.dropReplies(w, len(w.replies))
	r.discharge(windowBytes(w.client))
	r.rehash(w.sum, 0)
	r.windows = slices.Delete(r.windows, i, i+1)
}

// sealWindow brings the window's own hash up to date after its fields changed.
func (r *row) sealWindow(h *hasher, w *window) {
	sum := h.window(r, w)
	r.rehash(w.sum, sum)
	w.sum = sum
}

func (r *row) addReply(h *hasher, w *window, p cachedReply) {
	p.sum = h.reply(r, w.client, &p)
	r.replyCount++
	r.replyBytes += p.size()
	r.charge(replyCharge(&p))
	r.rehash(0, p.sum)
	w.replies = append(w.replies, p)
}

// trimReplies drops the replies below ack.
func (r *row) trimReplies(w *window, ack uint64) {
	n, _ := w.findReply(ack)
	r.dropReplies(w, n)
}

// dropReplies drops the first n replies.
func (r *row) dropReplies(w *window, n int) {
	for i := range w.replies[:n] {
		p := &w.replies[i]
		r.replyCount--
		r.replyBytes -= p.size()
		r.discharge(replyCharge(p))
		r.rehash(p.sum, 0)
	}
	w.replies = slices.Delete(w.replies, 0, n)
}

func (r *row) addPush(h *hasher, payload []byte) {
	r.appendPush(h, r.pushNext, payload)
	r.pushNext++
}

func (r *row) appendPush(h *hasher, seq uint64, payload []byte) {
	p := push{seq: seq, payload: payload}
	p.sum = h.push(r, p.seq, p.payload)
	r.outboxBytes += len(payload)
	r.charge(pushCharge(payload))
	r.rehash(0, p.sum)
	r.outbox = append(r.outbox, p)
}

// trimOutbox drops the pushes up to seq floor.
func (r *row) trimOutbox(floor uint64) {
	n := r.outboxBelow(floor)
	for i := range r.outbox[:n] {
		p := &r.outbox[i]
		r.outboxBytes -= len(p.payload)
		r.discharge(pushCharge(p.payload))
		r.rehash(p.sum, 0)
	}
	r.outbox = slices.Delete(r.outbox, 0, n)
}

func (r *row) outboxBelow(floor uint64) int {
	return sort.Search(len(r.outbox), func(i int) bool { return r.outbox[i].seq > floor })
}

// addHistory remembers an ownership change, the oldest giving way.
func (r *row) addHistory(h *hasher, c ownerChange) {
	if len(r.history) >= wire.HistoryMax {
		r.rehash(r.history[0].sum, 0)
		r.history = slices.Delete(r.history, 0, 1)
	}
	c.sum = h.ownerChange(r, &c)
	r.rehash(0, c.sum)
	r.history = append(r.history, c)
}
