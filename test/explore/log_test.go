package explore

import (
	"fmt"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The log, as package store applies it. A state of the search names a state of
// the tables by its number; applying a command to one is looked up, and done by
// store.Store itself the first time. Entries that change nothing are left out of
// the numbering of positions, which only have to rise.

// pos is a position of the log: twice the entry's index, plus the place in it.
type pos = uint8

func posOf(p uint64) pos {
	if p&(1<<store.PositionBits-1) > 1 || p>>store.PositionBits > 127 {
		panic("explore: a position that pos cannot tell")
	}
	return pos(p>>store.PositionBits<<1 | p&1)
}

func (b *book) position(p pos) uint64 {
	if p == 0 {
		return 0
	}
	return store.Position(uint64(p>>1), int(p&1))
}

type kind uint8

const (
	kNone kind = iota
	kRegister
	kFence
	kAssign
	kAttach
	kDetach
	kClaim
	kWrite
	kCancel
	kMarker
	kClose
	kExpire
	kBegin
	kPivot
	kAbort
	kEnd
	kTick
)

// cmd is a command in small numbers. What does not apply is 0.
type cmd struct {
	kind             kind
	node, inc        uint8 // the owner that it is from, or who is registered or fenced
	epoch            uint8
	client           uint8
	seq, prev        uint8
	num              uint8 // of an attachment; of a Register or Begin: makes the nonce
	value            uint8 // that a write leaves
	pushAck          uint8
	mig              pos
	change, attested pos
	warm             uint8 // clients, as bits
	to, toInc        uint8 // the new owner
	away             uint8 // Register: from another machine
	fails            bool  // Write: the handler does
	fresh            bool
}

// prop is what is proposed together: one or two commands.
type prop struct{ a, b cmd }

// result is a Result in small numbers.
type result struct {
	code          uint16
	before, after pos
	dup           bool
	digest        uint64
	reply         uint8
	outcome       uint16 // the reply's code
	row           uint16
	epoch         uint8
	mig           pos
	phase         uint8
}

type answer struct{ a, b result }

// row is a session's row as far as an owner and a client see it.
type row struct {
	epoch, owner, inc uint8
	change            pos
	value             uint8 // of the session's state: a counter
	pushLow           uint8 // the oldest durable push that is kept
	last, num         [clientsMax]uint8
	reply             [clientsMax]uint8 // the cached reply to last
	high              uint8
	mig               pos
}

func (r row) attached() bool { return r.num != [clientsMax]uint8{} }

// move is a Migration.
type move struct {
	id                       pos
	phase                    uint8
	source, sinc, to, toInc  uint8
	epoch, toEpoch, deadline uint8
}

// facts are what can be read of the tables.
type facts struct {
	row  uint16 // 0: there is no session
	gone uint16
	time uint8
	inc  [nodesMax]uint8 // current incarnations
	ok   [nodesMax]bool  // and whether they are not fenced
	// moves, by rising id; the last ones.
	moves [movesMax]move
	index uint8
}

func (f *facts) valid(node, inc uint8) bool { return inc != 0 && f.inc[node] == inc && f.ok[node] }

func (f *facts) move(id pos) *move {
	for i := range f.moves {
		if f.moves[i].id == id && id != 0 {
			return &f.moves[i]
		}
	}
	return nil
}

const (
	nodesMax   = 3
	clientsMax = 2
	movesMax   = 2
	session    = "s"
	tickUS     = 10_000_000 // longer than a TTL and than a migration may take
	ttlUS      = 2_000_000
	// numberFirst is the first attachment number of a node: those below are a
	// pivot's.
	numberFirst = 8
)

var clusterID = []byte("0123456789abcdef")

// tables is one state of the store.
type tables struct {
	parent uint32 // what it was made from by prop at time
	prop   uint16
	time   uint8
	facts  facts
}

type bookKey struct {
	tables uint32
	prop   uint16
	time   uint8
}

type applied struct {
	tables uint32
	answer uint16
}

// book has all states of the store that were met, and what leads from one to
// another.
type book struct {
	clients int
	shared  bool
	rows    table[row]
	props   table[prop]
	answers table[answer]
	steps   memo[bookKey, applied]
	digests memo[uint16, uint64]

	mu   sync.RWMutex
	list []tables
	by   map[string]uint32
}

func worker(n uint8) string          { return fmt.Sprint(n + 1) }
func clientOf(c uint8) []byte        { return []byte{'c', 'a' + c} }
func owner(n, inc uint8) *wire.Owner { return &wire.Owner{Worker: worker(n), Incarnation: uint64(inc)} }

func register(n uint8, nonce byte, predecessor, away uint8) *wire.Command {
	return &wire.Command{Kind: &wire.Command_RegisterWorker{RegisterWorker: &wire.RegisterWorker{
		Id: worker(n), Nonce: []byte{'r', n, nonce}, Predecessor: uint64(predecessor),
		Place: &wire.Place{Boot: "boot", Device: 1 + uint64(away), Inode: uint64(n) + 1, Local: true},
	}}}
}

// newBook begins a log: three workers, and a session of the first one to which
// the clients are attached.
func newBook(clients int, shared bool) (b *book, first uint32) {
	b = &book{clients: clients, shared: shared, by: map[string]uint32{}}
	s := b.rebuild(0)
	return b, b.enter(s, tables{})
}

func (b *book) begin() *store.Store {
	s := store.New()
	cmds := []*wire.Command{{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{ClusterId: clusterID}}}}
	for n := range uint8(nodesMax) {
		cmds = append(cmds, register(n, 0, 0, 0))
	}
	cmds = append(cmds, &wire.Command{Kind: &wire.Command_Open{Open: &wire.OpenSession{
		Session: session, Nonce: []byte("open"), SecretHash: []byte("hash"), TtlUs: ttlUS, Shared: b.shared,
		Owner: owner(0, 1), DeadlineUs: 1 << 40,
	}}})
	for c := range uint8(b.clients + 1) {
		res, _ := s.Apply(s.Index()+1, &wire.Entry{TimeUs: 1, Commands: cmds})
		for _, r := range res {
			if r.GetCode() != wire.Code_OK {
				panic(fmt.Sprint("explore: the beginning is refused: ", r))
			}
		}
		// One entry each: the position of a change must be one that pos can tell.
		cmds = []*wire.Command{{Kind: &wire.Command_Attach{Attach: &wire.Attach{
			Session: session, Epoch: 4, Owner: owner(0, 1), Number: numberFirst + uint64(c), Client: clientOf(c), Fresh: true,
		}}}}
	}
	return s
}

// rebuild makes a Store in the state of that number.
func (b *book) rebuild(n uint32) *store.Store {
	var props []tables
	for n > 1 {
		t := b.at(n)
		props = append(props, t)
		n = t.parent
	}
	s := b.begin()
	for i := len(props) - 1; i >= 0; i-- {
		b.apply(s, b.props.at(uint32(props[i].prop)), props[i].time)
	}
	return s
}

func (b *book) at(n uint32) tables {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.list[n-1]
}

func (b *book) facts(n uint32) *facts {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return &b.list[n-1].facts
}

func (b *book) apply(s *store.Store, p prop, time uint8) []*wire.Result {
	cmds := []*wire.Command{b.command(p.a)}
	if p.b.kind != kNone {
		cmds = append(cmds, b.command(p.b))
	}
	res, _ := s.Apply(s.Index()+1, &wire.Entry{TimeUs: uint64(time)*tickUS + 1, Commands: cmds})
	return res
}

// commit applies a proposal to a state of the tables.
func (b *book) commit(n uint32, p uint16, time uint8) (after uint32, ans uint16) {
	got := b.steps.get(bookKey{n, p, time}, func() applied {
		s := b.rebuild(n)
		before := content(s)
		res := b.apply(s, b.props.at(uint32(p)), time)
		a := answer{a: b.result(res[0])}
		if len(res) > 1 {
			a.b = b.result(res[1])
		}
		to := n
		if content(s) != before {
			to = b.enter(s, tables{parent: n, prop: p, time: time})
		}
		return applied{to, b.answers.small(a)}
	})
	return got.tables, got.answer
}

// enter numbers the state that s is in.
func (b *book) enter(s *store.Store, t tables) uint32 {
	key := fmt.Sprint(s.Index(), content(s))
	b.mu.Lock()
	defer b.mu.Unlock()
	if n, ok := b.by[key]; ok {
		return n
	}
	t.facts = b.read(s)
	// The list is copied as it grows; facts pointers stay good, as nothing in it
	// ever changes.
	b.list = append(b.list, t)
	b.by[key] = uint32(len(b.list))
	return uint32(len(b.list))
}

// content is all of the tables that any command or reader can tell by, position
// apart: no history, no words for people.
func content(s *store.Store) string {
	var k strings.Builder
	err := s.Snapshot().Records(func(b []byte) error {
		rec := &wire.SnapshotRecord{}
		if err := proto.Unmarshal(b, rec); err != nil {
			return err
		}
		switch rec := rec.GetKind().(type) {
		case *wire.SnapshotRecord_Cluster:
			fmt.Fprint(&k, "t", rec.Cluster.GetTimeUs(), " e", rec.Cluster.GetEpochs(), " v", rec.Cluster.GetVoterConfig())
		case *wire.SnapshotRecord_Worker:
			fmt.Fprint(&k, " w", rec.Worker.GetIncarnation(), rec.Worker.GetState(), rec.Worker.GetNonce())
		case *wire.SnapshotRecord_Session:
			r := rec.Session
			fmt.Fprint(&k, " s", r.GetOwner().GetWorker(), r.GetOwner().GetIncarnation(), " ", r.GetEpoch(), " ", r.GetAttachHigh(),
				" ", r.GetExpiresUs(), " ", r.GetPushNext(), " ", r.GetChange(), " ", r.GetMigration())
			for _, a := range r.GetAttachments() {
				fmt.Fprint(&k, " a", a.GetNumber(), a.GetClient())
			}
			for _, c := range r.GetState() {
				fmt.Fprint(&k, " k", c.GetValue())
			}
			for _, c := range r.GetClients() {
				fmt.Fprint(&k, " c", c.GetLast(), " ", c.GetAck(), " ", c.GetPushAck(), " ", c.GetAttached())
				for _, p := range c.GetReplies() {
					fmt.Fprint(&k, " r", p.GetReply().GetSeq(), p.GetReply().GetPayload(), p.GetReply().GetCode())
				}
			}
			for _, p := range r.GetOutbox() {
				fmt.Fprint(&k, " p", p.GetSeq(), p.GetPayload())
			}
		case *wire.SnapshotRecord_Migration:
			m := rec.Migration
			fmt.Fprint(&k, " m", m.GetId(), m.GetPhase(), m.GetTargetEpoch(), m.GetDigest(), m.GetDeadlineUs())
		case *wire.SnapshotRecord_Closed:
			fmt.Fprint(&k, " x", rec.Closed.GetUntilUs(), rec.Closed.GetWhy())
		}
		return nil
	})
	if err != nil {
		panic(err)
	}
	return k.String()
}

func (b *book) read(s *store.Store) facts {
	f := facts{row: b.row(s.Row(session)), gone: uint16(s.Location(session).GetGone()), time: uint8(s.TimeUS() / tickUS), index: uint8(s.Index())}
	for n := range uint8(nodesMax) {
		w := s.Worker(worker(n))
		f.inc[n] = uint8(w.GetIncarnation())
		f.ok[n] = s.Valid(owner(n, f.inc[n]))
	}
	for i, m := range s.Migrations(movesMax) {
		f.moves[i] = moveOf(m)
	}
	return f
}

func moveOf(m *wire.Migration) move {
	return move{
		id: posOf(m.GetId()), phase: uint8(m.GetPhase()), epoch: uint8(m.GetSourceEpoch()), toEpoch: uint8(m.GetTargetEpoch()),
		source: m.GetSource().GetWorker()[0] - '1', sinc: uint8(m.GetSource().GetIncarnation()),
		to: m.GetTarget().GetWorker()[0] - '1', toInc: uint8(m.GetTarget().GetIncarnation()),
		deadline: uint8(m.GetDeadlineUs() / tickUS),
	}
}

func (b *book) row(r *wire.SessionRow) uint16 {
	if r == nil {
		return 0
	}
	v := row{
		epoch: uint8(r.GetEpoch()), owner: r.GetOwner().GetWorker()[0] - '1', inc: uint8(r.GetOwner().GetIncarnation()),
		change: posOf(r.GetChange()), high: uint8(r.GetAttachHigh()), mig: posOf(r.GetMigration()), pushLow: uint8(r.GetPushNext()),
	}
	for _, c := range r.GetState() {
		v.value = c.GetValue()[0]
	}
	for _, p := range r.GetOutbox() {
		v.pushLow = min(v.pushLow, uint8(p.GetSeq()))
	}
	for _, c := range r.GetClients() {
		i := c.GetClient()[1] - 'a'
		v.last[i] = uint8(c.GetLast())
		for _, p := range c.GetReplies() {
			if p.GetReply().GetSeq() == c.GetLast() && len(p.GetReply().GetPayload()) > 0 {
				v.reply[i] = p.GetReply().GetPayload()[0]
			}
		}
	}
	for _, a := range r.GetAttachments() {
		v.num[a.GetClient()[1]-'a'] = uint8(a.GetNumber())
	}
	return b.rows.small(v)
}

func (b *book) result(r *wire.Result) result {
	v := result{
		code: uint16(r.GetCode()), before: posOf(r.GetBefore()), after: posOf(r.GetAfter()), dup: r.GetDuplicate(),
		digest: r.GetDigest(), row: b.row(r.GetRow()), epoch: uint8(r.GetEpoch()),
	}
	if p := r.GetReply().GetPayload(); len(p) > 0 {
		v.reply = p[0]
	}
	v.outcome = uint16(r.GetReply().GetCode())
	if m := r.GetMigration(); m != nil {
		v.mig, v.phase = posOf(m.GetId()), uint8(m.GetPhase())
	}
	return v
}

// command is c as the log carries it.
func (b *book) command(c cmd) *wire.Command {
	o := owner(c.node, c.inc)
	switch c.kind {
	case kRegister:
		return register(c.node, c.num, c.inc, c.away)
	case kFence:
		return &wire.Command{Kind: &wire.Command_FenceWorker{FenceWorker: &wire.FenceWorker{Id: worker(c.node), Incarnation: uint64(c.inc)}}}
	case kAssign:
		return &wire.Command{Kind: &wire.Command_Assign{Assign: &wire.Assign{Session: session, Replaces: uint64(c.epoch), Owner: owner(c.to, c.toInc)}}}
	case kAttach:
		return &wire.Command{Kind: &wire.Command_Attach{Attach: &wire.Attach{
			Session: session, Epoch: uint64(c.epoch), Owner: o, Number: uint64(c.num), Client: clientOf(c.client), Fresh: c.fresh,
		}}}
	case kDetach:
		return &wire.Command{Kind: &wire.Command_Detach{Detach: &wire.Detach{Session: session, Epoch: uint64(c.epoch), Owner: o, Number: uint64(c.num)}}}
	case kClaim:
		return &wire.Command{Kind: &wire.Command_Claim{Claim: &wire.Claim{Session: session, Epoch: uint64(c.epoch), Owner: o}}}
	case kWrite:
		return &wire.Command{Kind: &wire.Command_Write{Write: b.write(c)}}
	case kCancel:
		return &wire.Command{Kind: &wire.Command_Cancel{Cancel: &wire.Cancel{
			Session: session, Epoch: uint64(c.epoch), Owner: o, Client: clientOf(c.client), Seq: uint64(c.seq), Prev: uint64(c.prev), Ack: uint64(c.seq),
		}}}
	case kMarker:
		return &wire.Command{Kind: &wire.Command_ReadMarker{ReadMarker: &wire.ReadMarker{Owner: o}}}
	case kClose:
		return &wire.Command{Kind: &wire.Command_Close{Close: &wire.CloseSession{Session: session, Epoch: uint64(c.epoch), Owner: o}}}
	case kExpire:
		return &wire.Command{Kind: &wire.Command_Expire{Expire: &wire.Expire{Session: session, Epoch: uint64(c.epoch)}}}
	case kBegin:
		return &wire.Command{Kind: &wire.Command_Begin{Begin: &wire.BeginMigration{
			Nonce: []byte{'b', c.num}, Session: session, SourceEpoch: uint64(c.epoch), Source: o, Target: owner(c.to, c.toInc),
			TokenHash: []byte("token"), DeadlineUs: uint64(c.value)*tickUS + tickUS/2, Reason: wire.Reason_REASON_ADMIN_REQUEST,
		}}}
	case kPivot:
		p := &wire.CommitPivot{
			Migration: b.position(c.mig), Change: b.position(c.change), Attested: b.position(c.attested), Digest: uint64(c.mig)<<8 | uint64(c.change),
		}
		for i := range uint8(clientsMax) {
			if c.warm>>i&1 == 1 {
				p.Warm = append(p.Warm, clientOf(i))
			}
		}
		return &wire.Command{Kind: &wire.Command_Pivot{Pivot: p}}
	case kAbort:
		return &wire.Command{Kind: &wire.Command_Abort{Abort: &wire.AbortMigration{Migration: b.position(c.mig)}}}
	case kEnd:
		return &wire.Command{Kind: &wire.Command_End{End: &wire.EndMigration{Migration: b.position(c.mig)}}}
	case kTick:
		return &wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}}
	}
	panic("explore: no such command")
}

// write is a write that raises the counter by one, pushes the new value, and
// answers it.
func (b *book) write(c cmd) *wire.Write {
	w := &wire.Write{
		Session: session, Epoch: uint64(c.epoch), Owner: owner(c.node, c.inc), Client: clientOf(c.client),
		Seq: uint64(c.seq), Prev: uint64(c.prev), Ack: uint64(c.seq), PushAck: uint64(c.pushAck),
		Changes: []*wire.Change{{Key: "v", Value: []byte{c.value}}}, Pushes: [][]byte{{c.value}},
		Reply: &wire.Reply{Seq: uint64(c.seq), Payload: []byte{c.value}},
	}
	if c.fails {
		w.Changes, w.Pushes, w.Reply = nil, nil, &wire.Reply{Seq: uint64(c.seq), Code: wire.Code_HANDLER_ERROR}
	}
	w.Digest = wire.Digest(w)
	return w
}
