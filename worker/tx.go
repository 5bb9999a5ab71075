package worker

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/tidwall/btree"

	"github.com/baton-cluster/baton/wire"
)

// Fence names one request for other systems: (Session, Epoch) as a fencing
// token, rising with every change of owner, and (Session, Client, Seq) as an
// idempotency key.
type Fence struct {
	Session string
	Epoch   uint64
	Client  string // the client instance, 16 bytes
	Seq     uint64
}

// overlay is what a group of requests has buffered on top of the committed
// state: the writes of the requests so far, and of the one that runs.
type overlay struct {
	base  *btree.Map[string, []byte]
	kept  map[string]buffered // by finished requests of the group; nil if there is but one
	own   map[string]buffered // by the one that runs
	bytes int                 // of the state, with kept and own
	next  int                 // bytes before own
}

type buffered struct {
	value  []byte
	delete bool
}

// newOverlay is for a group of so many requests.
func newOverlay(a *activation, requests int) *overlay {
	o := &overlay{base: a.state, own: map[string]buffered{}, bytes: a.bytes, next: a.bytes}
	if requests > 1 {
		o.kept = map[string]buffered{}
	}
	return o
}

func (o *overlay) get(key string) ([]byte, bool) {
	if b, ok := o.own[key]; ok {
		return b.value, !b.delete
	}
	if b, ok := o.kept[key]; ok {
		return b.value, !b.delete
	}
	return o.base.Get(key)
}

func (o *overlay) set(key string, b buffered) {
	if old, had := o.get(key); had {
		o.bytes -= len(key) + len(old) + wire.EntryOverheadBytes
	}
	if !b.delete {
		o.bytes += len(key) + len(b.value) + wire.EntryOverheadBytes
	}
	o.own[key] = b
}

// Tx is a write-class handler's view of its session: the committed state with
// the writes of this client's earlier requests on top. What it writes commits
// with the reply or not at all.
type Tx struct {
	over   *overlay
	ctx    context.Context
	fence  Fence
	pushes [][]byte
	pushed int            // bytes of pushes
	delta  []*wire.Change // once kept
}

// Session is the session's id.
func (tx *Tx) Session() string { return tx.fence.Session }

// Fence is what to hand to other systems.
func (tx *Tx) Fence() Fence { return tx.fence }

// Context ends when the node stops.
func (tx *Tx) Context() context.Context { return tx.ctx }

// Get returns a copy of the value at key, and whether there is one.
func (tx *Tx) Get(key string) ([]byte, bool) {
	v, ok := tx.over.get(key)
	return bytes.Clone(v), ok
}

// Put sets key, of 1 to wire.KeyBytesMax bytes of UTF-8, to value. It fails with
// BAD_KEY, VALUE_TOO_LARGE or STATE_TOO_LARGE, and then changes nothing.
func (tx *Tx) Put(key string, value []byte) error {
	if len(key) == 0 || len(key) > wire.KeyBytesMax || !utf8.ValidString(key) {
		return wire.Errorf(wire.Code_BAD_KEY, "%s", refusal(wire.Code_BAD_KEY))
	}
	if len(value) > wire.ValueBytesMax {
		return wire.Errorf(wire.Code_VALUE_TOO_LARGE, "%s", refusal(wire.Code_VALUE_TOO_LARGE))
	}
	grown := len(key) + len(value) + wire.EntryOverheadBytes
	if old, had := tx.over.get(key); had {
		grown -= len(key) + len(old) + wire.EntryOverheadBytes
	}
	if grown > 0 && tx.over.bytes+grown > wire.StateBytesMax {
		return wire.Errorf(wire.Code_STATE_TOO_LARGE, "%s", refusal(wire.Code_STATE_TOO_LARGE))
	}
	tx.over.set(key, buffered{value: bytes.Clone(value)})
	return nil
}

// Delete removes key and reports whether it was there.
func (tx *Tx) Delete(key string) bool {
	_, had := tx.over.get(key)
	if had {
		tx.over.set(key, buffered{delete: true})
	}
	return had
}

// Incr adds n to the decimal integer at key (absent counts as 0) and returns
// the sum. It fails with BAD_REQUEST if the value is no integer or would
// overflow.
func (tx *Tx) Incr(key string, n int64) (int64, error) {
	old, had := tx.over.get(key)
	var v int64
	if had {
		var err error
		if v, err = strconv.ParseInt(string(old), 10, 64); err != nil {
			return 0, wire.Errorf(wire.Code_BAD_REQUEST, "the value at %q is not an integer", key)
		}
	}
	sum := v + n
	if (sum > v) != (n > 0) && n != 0 {
		return 0, wire.Errorf(wire.Code_BAD_REQUEST, "the value at %q would overflow", key)
	}
	return sum, tx.Put(key, strconv.AppendInt(nil, sum, 10))
}

// CompareAndSet sets key to value if it holds old; nil stands for absent on
// both sides. It reports whether it did.
func (tx *Tx) CompareAndSet(key string, old, value []byte) (bool, error) {
	cur, had := tx.over.get(key)
	if had != (old != nil) || !bytes.Equal(cur, old) {
		return false, nil
	}
	if value == nil {
		tx.Delete(key)
		return true, nil
	}
	return true, tx.Put(key, value)
}

// Push sends the session's clients a durable message: it commits with the
// state, arrives in order, once, and survives moves and crashes. It fails with
// VALUE_TOO_LARGE, or OUTBOX_FULL if the request's pushes alone are more than
// the session can hold for its clients.
func (tx *Tx) Push(payload []byte) error {
	if len(payload) > wire.ValueBytesMax {
		return wire.Errorf(wire.Code_VALUE_TOO_LARGE, "%s", refusal(wire.Code_VALUE_TOO_LARGE))
	}
	if len(tx.pushes) >= wire.OutboxMax || tx.pushed+len(payload) > wire.OutboxBytesMax {
		return wire.Errorf(wire.Code_OUTBOX_FULL, "a request makes at most %d pushes of %d bytes together", wire.OutboxMax, wire.OutboxBytesMax)
	}
	tx.pushed += len(payload)
	tx.pushes = append(tx.pushes, bytes.Clone(payload))
	return nil
}

// keep makes the writes visible to the group's later requests.
func (tx *Tx) keep() {
	keys := make([]string, 0, len(tx.over.own))
	for k := range tx.over.own {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		b := tx.over.own[k]
		if tx.over.kept != nil {
			tx.over.kept[k] = b
		}
		tx.delta = append(tx.delta, &wire.Change{Key: k, Value: b.value, Delete: b.delete})
	}
	clear(tx.over.own)
	tx.over.next = tx.over.bytes
}

// discard drops the writes of a failed handler.
func (tx *Tx) discard() {
	clear(tx.over.own)
	tx.over.bytes = tx.over.next
	tx.pushes, tx.delta = nil, nil
}

func (tx *Tx) changes() []*wire.Change { return tx.delta }

// View is a query's view of its session: one immutable version of the state.
type View struct {
	state *btree.Map[string, []byte]
	over  *overlay // when the query runs among calls of its client
	ctx   context.Context
	fence Fence
}

// Session is the session's id.
func (v *View) Session() string { return v.fence.Session }

// Fence names the request.
func (v *View) Fence() Fence { return v.fence }

// Context ends when the node stops.
func (v *View) Context() context.Context { return v.ctx }

// Get returns a copy of the value at key, and whether there is one.
func (v *View) Get(key string) ([]byte, bool) {
	var val []byte
	var ok bool
	if v.over != nil {
		val, ok = v.over.get(key)
	} else {
		val, ok = v.state.Get(key)
	}
	return bytes.Clone(val), ok
}
