package store

import (
	"slices"
	"strings"

	"github.com/baton-cluster/baton/wire"
)

const (
	// changesMax is the number of changes that one Write may carry: as many as
	// there can be entries in a state.
	changesMax = wire.StateBytesMax / wire.EntryOverheadBytes
	// cancelsMax bounds the cached replies where Cancel passes over
	// wire.RepliesMax: it settles a seq so that its successors are not blocked,
	// hence has room where a Write has none, but not without end.
	cancelsMax = 16 * wire.RepliesMax
)

// member is the gate of what a client instance commands: it must be attached
// (S7). A nil row means refused, and res says why.
func (s *Store) member(id string, epoch uint64, o *wire.Owner, client string, res *wire.Result) *row {
	r := s.gate(id, epoch, o, res)
	if r == nil || r.isAttached(client) {
		return r
	}
	res.Code = wire.Code_NOT_ATTACHED
	if !r.shared && r.attached() {
		res.Code = wire.Code_DISPLACED
	}
	return nil
}

// settled is the exactly-once rule (P3): the dedup window first, then the
// previous seq. It reports true if the command has no effect of its own: seq is
// settled already, or refused. It runs before any check of the command's
// content, so that a retry gets its reply whatever it looks like.
func settled(r *row, w *window, seq, prev uint64, res *wire.Result) bool {
	if seq == 0 {
		res.Code = wire.Code_BAD_REQUEST
		return true
	}
	if i, ok := w.findReply(seq); ok {
		p := &w.replies[i]
		res.Duplicate = true
		res.Digest = p.digest
		res.Reply = p.proto()
		return true
	}
	switch {
	case seq < w.ack || seq <= w.last:
		res.Code = wire.Code_REPLY_GONE
		return true
	case prev != w.last:
		res.Code = wire.Code_SEQ_MISMATCH
		return true
	}
	return false
}

// plan is what a Write would do, worked out before anything is touched: a
// refusal consumes nothing.
type plan struct {
	changes []*wire.Change // by rising key, the last change of each
	reply   cachedReply
	ack     uint64
	floor   uint64   // pushes up to here leave the outbox
	evict   []string // windows that give way to the reply
}

func (s *Store) applyWrite(c *wire.Write, res *wire.Result) {
	client := string(c.GetClient())
	r := s.member(c.GetSession(), c.GetEpoch(), c.GetOwner(), client, res)
	if r == nil {
		return
	}
	w := r.window(client)
	if settled(r, w, c.GetSeq(), c.GetPrev(), res) {
		return
	}
	if res.Code = checkWrite(c); res.Code != wire.Code_OK {
		return
	}
	p, code := s.planWrite(r, w, c)
	if code != wire.Code_OK {
		res.Code = code
		return
	}
	r, keys := s.edit(r)
	for _, client := range p.evict {
		r.dropWindow(client)
	}
	r.setEntries(&s.h, p.changes)
	r.trimOutbox(p.floor)
	for _, payload := range c.GetPushes() {
		r.addPush(&s.h, payload)
	}
	w = r.window(client)
	w.pushAck = max(w.pushAck, min(c.GetPushAck(), r.pushNext-1-uint64(len(c.GetPushes()))))
	s.settle(r, w, p.ack, p.reply, res)
	s.commit(r, keys)
}

// settle records the reply and the window's progress.
func (s *Store) settle(r *row, w *window, ack uint64, p cachedReply, res *wire.Result) {
	w.ack = max(w.ack, ack)
	w.last = p.seq
	r.trimReplies(w, w.ack)
	r.addReply(&s.h, w, p)
	r.sealWindow(&s.h, w)
	s.touch(r, res)
	res.Digest = p.digest
	res.Reply = p.proto()
}

// checkWrite checks the command by itself.
func checkWrite(c *wire.Write) wire.Code {
	if c.GetAck() > c.GetSeq() || c.GetReply() == nil || len(c.GetChanges()) > changesMax {
		return wire.Code_BAD_REQUEST
	}
	for _, ch := range c.GetChanges() {
		switch {
		case ch.GetKey() == "" || len(ch.GetKey()) > wire.KeyBytesMax:
			return wire.Code_BAD_KEY
		case len(ch.GetValue()) > wire.ValueBytesMax:
			return wire.Code_VALUE_TOO_LARGE
		}
	}
	if len(c.GetPushes()) > wire.OutboxMax {
		return wire.Code_OUTBOX_FULL
	}
	for _, p := range c.GetPushes() {
		if len(p) > wire.ValueBytesMax {
			return wire.Code_VALUE_TOO_LARGE
		}
	}
	if len(c.GetReply().GetPayload())+len(c.GetReply().GetMessage()) > wire.ReplyBytesMax {
		return wire.Code_REPLY_TOO_LARGE
	}
	return wire.Code_OK
}

func (s *Store) planWrite(r *row, w *window, c *wire.Write) (plan, wire.Code) {
	p := plan{
		changes: lastOfEach(c.GetChanges()),
		ack:     c.GetAck(),
		floor:   r.pushFloor(w.client, c.GetPushAck()),
		reply: cachedReply{
			seq:     c.GetSeq(),
			code:    c.GetReply().GetCode(),
			message: c.GetReply().GetMessage(),
			payload: c.GetReply().GetPayload(),
			digest:  c.GetDigest(),
		},
	}
	state := r.growth(p.changes)
	if state > 0 && r.stateBytes+state > wire.StateBytesMax {
		return p, wire.Code_STATE_TOO_LARGE
	}
	grown := state
	trimmed := r.outboxBelow(p.floor)
	pushes, pushBytes := len(r.outbox)-trimmed, r.outboxBytes
	for _, q := range r.outbox[:trimmed] {
		pushBytes -= len(q.payload)
		grown -= pushCharge(q.payload)
	}
	for _, payload := range c.GetPushes() {
		pushes++
		pushBytes += len(payload)
		grown += pushCharge(payload)
	}
	if len(c.GetPushes()) > 0 && (pushes > wire.OutboxMax || pushBytes > wire.OutboxBytesMax) {
		return p, wire.Code_OUTBOX_FULL
	}
	evict, replies, ok := r.roomForReply(w, p.ack, p.reply.size())
	if !ok {
		return p, wire.Code_REPLY_CACHE_FULL
	}
	p.evict = evict
	grown += replies
	if s.overBudget(grown) && !deletesOnly(c) {
		return p, wire.Code_BUDGET_EXCEEDED
	}
	return p, wire.Code_OK
}

// deletesOnly reports whether the Write only removes: that is never refused for
// the byte budget, else a full cluster could not be emptied (S9).
func deletesOnly(c *wire.Write) bool {
	for _, ch := range c.GetChanges() {
		if !ch.GetDelete() {
			return false
		}
	}
	return len(c.GetChanges()) > 0 && len(c.GetPushes()) == 0
}

// lastOfEach sorts changes by key and keeps the last of each key.
func lastOfEach(changes []*wire.Change) []*wire.Change {
	if len(changes) < 2 {
		return changes
	}
	sorted := slices.Clone(changes)
	slices.SortStableFunc(sorted, func(a, b *wire.Change) int { return strings.Compare(a.GetKey(), b.GetKey()) })
	kept := sorted[:0]
	for i, c := range sorted {
		if i+1 == len(sorted) || sorted[i+1].GetKey() != c.GetKey() {
			kept = append(kept, c)
		}
	}
	return kept
}

// growth is by how much changes make the state larger.
func (r *row) growth(changes []*wire.Change) int {
	n := 0
	for _, c := range changes {
		if i, ok := r.findEntry(c.GetKey()); ok {
			n -= EntryBytes(r.state[i].key, r.state[i].value)
		}
		if !c.GetDelete() {
			n += EntryBytes(c.GetKey(), c.GetValue())
		}
	}
	return n
}

// pushFloor is up to where every attached client has received the pushes, if
// this client has received them up to ack. An ack of what was never sent counts
// as one of all that was.
func (r *row) pushFloor(client string, ack uint64) uint64 {
	floor := r.pushNext - 1
	for _, a := range r.attachments {
		w := r.window(a.client)
		received := w.pushAck
		if a.client == client {
			received = max(received, ack)
		}
		floor = min(floor, received)
	}
	return floor
}

// roomForReply works out whether the session's reply cache has room for one
// more reply of this size, once the client's own replies below ack are gone. It
// never drops what an attached client has not acknowledged. If there is no room
// it gives up whole windows of instances that are not attached, longest away
// first: they will be told CLIENT_GONE, and without that the replies that
// departed instances never acknowledged would block the session for good.
// grown is by how much all this makes the row larger.
func (r *row) roomForReply(w *window, ack uint64, size int) (evict []string, grown int, ok bool) {
	count, bytes := r.replyCount+1, r.replyBytes+size
	grown = size + wire.EntryOverheadBytes
	trimmed, _ := w.findReply(max(w.ack, ack))
	for i := range w.replies[:trimmed] {
		count--
		bytes -= w.replies[i].size()
		grown -= replyCharge(&w.replies[i])
	}
	fits := func() bool { return count <= wire.RepliesMax && bytes <= wire.ReplyBytesMax }
	if fits() {
		return nil, grown, true
	}
	for _, away := range r.windowsAway() {
		evict = append(evict, away.client)
		grown -= windowBytes(away.client)
		for i := range away.replies {
			count--
			bytes -= away.replies[i].size()
			grown -= replyCharge(&away.replies[i])
		}
		if fits() {
			return evict, grown, true
		}
	}
	return nil, 0, false
}

// windowsAway lists the windows that hold replies and whose instance is not
// attached, by rising last attachment.
func (r *row) windowsAway() []*window {
	var away []*window
	for i := range r.windows {
		if w := &r.windows[i]; len(w.replies) > 0 && !r.isAttached(w.client) {
			away = append(away, w)
		}
	}
	slices.SortStableFunc(away, func(a, b *window) int {
		switch {
		case a.attached < b.attached:
			return -1
		case a.attached > b.attached:
			return 1
		}
		return 0
	})
	return away
}

// applyCancel settles a seq that its caller gave up, unless it ran: then its
// reply is returned. Its own reply is small and is not refused for space.
func (s *Store) applyCancel(c *wire.Cancel, res *wire.Result) {
	client := string(c.GetClient())
	r := s.member(c.GetSession(), c.GetEpoch(), c.GetOwner(), client, res)
	if r == nil {
		return
	}
	w := r.window(client)
	if settled(r, w, c.GetSeq(), c.GetPrev(), res) {
		return
	}
	switch {
	case c.GetAck() > c.GetSeq():
		res.Code = wire.Code_BAD_REQUEST
		return
	case r.replyCount >= cancelsMax && len(w.replies) > 0 && w.replies[0].seq >= c.GetAck():
		res.Code = wire.Code_REPLY_CACHE_FULL
		return
	}
	r, keys := s.edit(r)
	s.settle(r, r.window(client), c.GetAck(), cachedReply{seq: c.GetSeq(), code: wire.Code_CANCELLED}, res)
	s.commit(r, keys)
}

// applyAck drops what the client has received.
func (s *Store) applyAck(c *wire.Ack, res *wire.Result) {
	client := string(c.GetClient())
	r := s.member(c.GetSession(), c.GetEpoch(), c.GetOwner(), client, res)
	if r == nil {
		return
	}
	w := r.window(client)
	floor := r.pushFloor(client, c.GetPushAck())
	pushAck := min(c.GetPushAck(), r.pushNext-1)
	if c.GetAck() <= w.ack && pushAck <= w.pushAck && r.outboxBelow(floor) == 0 {
		res.Duplicate = true
		return
	}
	r, keys := s.edit(r)
	w = r.window(client)
	w.ack = max(w.ack, c.GetAck())
	w.pushAck = max(w.pushAck, pushAck)
	r.trimReplies(w, w.ack)
	r.sealWindow(&s.h, w)
	r.trimOutbox(floor)
	s.touch(r, res)
	s.commit(r, keys)
}
