package worker

import (
	"github.com/tidwall/btree"

	"github.com/baton-cluster/baton/wire"
)

// activation is the row of a session that this worker serves. It is made from
// the result of a committed command and advanced only by results that follow
// it without a gap.
type activation struct {
	epoch uint64
	owner *wire.Owner // this worker, as the incarnation that serves

	// Invariant: state, windows and outbox are the row at change position
	// change; nothing uncommitted is ever in them.
	change  uint64
	state   *btree.Map[string, []byte]
	shared  *btree.Map[string, []byte] // state as it is, for queries; nil: none wanted it
	bytes   int                        // of keys and values
	windows map[string]*window
	outbox  []*wire.Push
	next    uint64 // seq of the next push

	// numbers are the attachments on record: client instance → number.
	numbers map[string]uint64

	first, last uint64 // positions of the first and last command seen committed

	// streamsSince is an epoch since which every change of owner was a move that
	// brought all byte streams along, at most this one.
	streamsSince uint64
}

// window is one client instance's dedup window.
type window struct {
	last    uint64
	ack     uint64
	pushAck uint64
	replies map[uint64]*wire.Reply
}

func newActivation(row *wire.SessionRow, position uint64) *activation {
	a := &activation{
		epoch:   row.GetEpoch(),
		owner:   row.GetOwner(),
		change:  row.GetChange(),
		state:   new(btree.Map[string, []byte]),
		windows: make(map[string]*window, len(row.GetClients())),
		outbox:  row.GetOutbox(),
		next:    row.GetPushNext(),
		numbers: make(map[string]uint64, len(row.GetAttachments())),
		first:   position,
		last:    position,
	}
	for _, c := range row.GetState() {
		a.state.Load(c.GetKey(), c.GetValue())
		a.bytes += len(c.GetKey()) + len(c.GetValue()) + wire.EntryOverheadBytes
	}
	for _, c := range row.GetClients() {
		win := &window{last: c.GetLast(), ack: c.GetAck(), pushAck: c.GetPushAck(), replies: make(map[uint64]*wire.Reply, len(c.GetReplies()))}
		for _, r := range c.GetReplies() {
			win.replies[r.GetReply().GetSeq()] = r.GetReply()
		}
		a.windows[string(c.GetClient())] = win
	}
	for _, at := range row.GetAttachments() {
		a.numbers[string(at.GetClient())] = at.GetNumber()
	}
	return a
}

// advance applies a committed Write or Cancel of this worker, whose result
// followed the activation without a gap. It returns the new durable pushes.
func (a *activation) advance(cmd *wire.Command, res *wire.Result) []*wire.Push {
	a.change, a.last = res.GetAfter(), res.GetPosition()
	if c := cmd.GetCancel(); c != nil {
		a.record(c.GetClient(), c.GetSeq(), c.GetAck(), res.GetReply())
		return nil
	}
	w := cmd.GetWrite()
	for _, c := range w.GetChanges() {
		a.put(c)
	}
	a.record(w.GetClient(), w.GetSeq(), w.GetAck(), w.GetReply())
	a.received(w.GetClient(), w.GetPushAck())
	fresh := len(a.outbox)
	for _, p := range w.GetPushes() {
		a.outbox = append(a.outbox, &wire.Push{Seq: a.next, Payload: p})
		a.next++
	}
	return a.outbox[fresh:]
}

// version is the state as of now. It never changes, and all queries between two
// writes share it. The session's mutex is held.
func (a *activation) version() *btree.Map[string, []byte] {
	if a.shared == nil {
		a.shared = a.state.Copy()
	}
	return a.shared
}

func (a *activation) put(c *wire.Change) {
	a.shared = nil
	if c.GetDelete() {
		if old, ok := a.state.Delete(c.GetKey()); ok {
			a.bytes -= len(c.GetKey()) + len(old) + wire.EntryOverheadBytes
		}
		return
	}
	old, had := a.state.Set(c.GetKey(), c.GetValue())
	if had {
		a.bytes += len(c.GetValue()) - len(old)
	} else {
		a.bytes += len(c.GetKey()) + len(c.GetValue()) + wire.EntryOverheadBytes
	}
}

// record notes a settled seq in the client's window.
func (a *activation) record(client []byte, seq, ack uint64, reply *wire.Reply) {
	win := a.windows[string(client)]
	if win == nil {
		return
	}
	win.last = seq
	win.replies[seq] = reply
	a.acknowledge(win, ack)
}

func (a *activation) acknowledge(win *window, ack uint64) {
	if ack <= win.ack {
		return
	}
	win.ack = ack
	for seq := range win.replies {
		if seq < ack {
			delete(win.replies, seq)
		}
	}
}

// received drops pushes that every attached client has.
func (a *activation) received(client []byte, pushAck uint64) {
	win := a.windows[string(client)]
	pushAck = min(pushAck, a.next-1) // nobody has what was not sent
	if win == nil || pushAck <= win.pushAck {
		return
	}
	win.pushAck = pushAck
	low := pushAck
	for id := range a.numbers {
		if other := a.windows[id]; other != nil {
			low = min(low, other.pushAck)
		}
	}
	keep := 0
	for keep < len(a.outbox) && a.outbox[keep].GetSeq() <= low {
		keep++
	}
	a.outbox = a.outbox[keep:]
}
