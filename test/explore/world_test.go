package explore

import (
	"github.com/baton-cluster/baton/test/explore/search"
)

// scope is what is searched: who plays a part, and how often each thing may
// happen that need not. What is not bounded here is not bounded at all: messages
// are as late as may be, processes pause between any two steps.
type scope struct {
	name    string
	nodes   uint8
	clients uint8
	shared  bool   // both clients may be attached at once
	plan    string // what each client asks: w(rite), r(ead under the lease), R(ead by way of the log)
	planB   string // of the second, if it is another

	cuts, gone           uint8 // clients' streams that break; clients that leave without a word
	losses, copies       uint8 // answers of the log that are lost; commands that arrive twice
	crashes, fences      uint8
	moves, directors     uint8 // moves asked for; directors that take over from one that lives on
	deaths               uint8 // of directors
	ticks, closes, fails uint8 // log time that passes all deadlines; sessions closed; calls of directors that fail at once
	// without are rules that are taken out, to see that the search misses them.
	without string
}

// What a scope bounds.
const (
	cuts = iota
	gone
	losses
	copies
	crashes
	fences
	moves
	directors
	deaths
	ticks
	closes
	fails
	budgets
)

// A client's stream at a node.
const (
	linkNone = iota
	linkAttaching
	linkServed
	linkWarm
	linkCut // ended while it was attaching
)

// Operations of a session's turn.
const (
	opNone = iota
	opAttach
	opDetach
	opPivot
	opClose
)

// op is an operation that waits for its turn.
type op struct{ kind, client, num, epoch uint8 }

// slot is what is with the log: a proposal, and its answer once that is back.
type slot struct{ prop, ans uint16 }

// Phases of a handover at its source.
const (
	hoNone     = iota
	hoWaits    // for the applied state to show the migration
	hoSettles  // for what is with the log
	hoClaims   // to know the row's change
	hoSends    // the snapshot, and waits for the outcome
	hoResolves // by the log
)

// What a client has at a node of its one request that has no answer.
const (
	waitNone = iota
	waitHere
	waitRuns    // with the log
	waitVersion // a query that has its version of the activation
	waitMarker  // and waits for a marker
)

// node is one worker, as far as the one session goes.
type node struct {
	view uint32 // its own copy of the tables
	act  uint16 // row that it serves by, 0: none
	grp  slot   // the session's turn
	rsv  slot   // of a handover, or a capture
	mrk  slot   // a marker
	up, inc,
	stale,
	next, // attachment numbers given out
	frozen, // migration
	ho, hoMig, hoWarm, hoTries,
	in, // migration that it expects clients of
	inClosed,
	xMig, xChange, xWarm uint8 // a snapshot whose pivot waits for its turn or its answer
	link, num, wait, held, seen [clientsMax]uint8
	ops                         [4]op
}

// client is one client instance.
type client struct {
	at     uint8 // place in its plan
	epoch  uint8 // the highest seen
	asked  uint8 // the request has been sent
	floor  uint8 // what an answer must not be below
	last   uint8 // seq of its last write that was answered
	push   uint8 // the last push received
	sent   uint8 // anything ever
	over   uint8 // it has left, or was displaced
	token  uint8 // the migration that it has a token of
	who    uint8
	warmed uint8
}

// director is one handoff and what it waits for.
type director struct {
	h      uint16
	slot   slot
	call   uint8 // migrate.ActionKind
	callTo uint8
	look   uint8
	mig    pos
	warm   uint8
	spare  uint8
}

// letter is a call that is under way, for as long as it is not taken.
type letter struct{ kind, mig, warm, change, tries, from uint8 }

// Kinds of letters.
const (
	toHandOver = iota + 1
	toTransfer
)

const straysMax = 3

// state is a state of the search.
type state struct {
	head   uint32
	n      [nodesMax]node
	d      [2]director
	c      [clientsMax]client
	mail   [2]letter
	stray  [straysMax]uint16 // proposals that nobody waits for and that may come yet
	left   [budgets]uint8
	known  uint8 // the highest value that any client was told
	bad    uint8
	now    uint8
	nonces uint8
}

// world is a model for search.Run.
type world struct {
	scope
	b     *book
	o     *office
	first uint32
}

type step = search.Step[state]

func newWorld(sc scope) *world {
	b, first := newBook(int(sc.clients), sc.shared)
	return &world{scope: sc, b: b, o: &office{b: b}, first: first}
}

func (w *world) Init() (s state) {
	s.head = w.first
	f := w.b.facts(s.head)
	for i := range s.n[:w.nodes] {
		n := &s.n[i]
		n.view, n.up, n.inc, n.next = s.head, 1, f.inc[i], numberFirst+1
	}
	n := &s.n[0]
	n.act = f.row
	r := w.b.rows.at(uint32(f.row))
	for c := range w.clients {
		s.c[c].epoch, s.c[c].who = r.epoch, c
		if r.num[c] != 0 {
			n.link[c], n.num[c] = linkServed, r.num[c]
		} else {
			s.c[c].over = 1 // displaced
		}
	}
	for c := w.clients; c < clientsMax; c++ {
		s.c[c].over = 1
	}
	s.left = [budgets]uint8{
		cuts: w.cuts, gone: w.gone, losses: w.losses, copies: w.copies, crashes: w.crashes, fences: w.fences,
		moves: w.moves, directors: w.directors, deaths: w.deaths, ticks: w.ticks, closes: w.closes, fails: w.fails,
	}
	return s
}

func (w *world) row(n *node) row { return w.b.rows.at(uint32(n.act)) }
