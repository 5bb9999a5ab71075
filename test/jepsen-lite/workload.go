package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/baton-cluster/baton"

	"github.com/baton-cluster/baton/test/jepsen-lite/history"
)

// Load is made by slots. Each works on one session at a time, of one kind, with
// a few goroutines on one Session; after a while, or when too many outcomes are
// unknown, it goes on with a new session and leaves the old one for the final
// reads.
type slotKind string

const (
	counter  slotKind = "counter"
	register slotKind = "register"
	appends  slotKind = "append"
	pushes   slotKind = "push"
	shared   slotKind = "shared" // a register that several clients share
	streams  slotKind = "stream"
	churning slotKind = "churn" // short lives
	theft    slotKind = "theft" // others try to get at it
)

var slotKinds = []slotKind{counter, register, shared, streams, appends, pushes, churning, shared, theft, register}

const (
	// opLimit is long, so that an operation outlives most faults and its outcome
	// is known: each unknown one makes the check more costly.
	opLimit = 15 * time.Second
	// unknownMax ends a session's load: the search is exponential in it.
	unknownMax = 6
	// generation bounds a session's history, for the same reason.
	generation = 40 * time.Second
	// listMax elements in one list, then the next key: lists are rewritten whole.
	listMax = 40
	// lifeTTL is longer than any run: sessions are left when their load has ended, and
	// read in the end.
	lifeTTL = 48 * time.Hour
	// finalLimit is how long a session may take to serve after all has healed.
	finalLimit = 30 * time.Second
)

// load is all slots together.
type load struct {
	rec     *history.Recorder
	clients []*baton.Client
	seed    uint64
	think   time.Duration
	// faults of the product that no history check sees, as a session that ended.
	complain func(check, session, detail string)

	mu       sync.Mutex
	pace     float64  // of reads: how much rarer than in a short run
	cluster  *cluster // for those who go around the client library
	tally    tally
	gone     []gone // sessions that must not be there in the end
	live     map[string]bool
	poke     chan struct{} // closed and replaced to have displacers act at once
	finished []*lane
	nextID   int
}

// lane is one session's life under load.
type lane struct {
	load   *load
	kind   slotKind
	id     string
	secret []byte
	home   int // client host that opened it

	mu       sync.Mutex
	sess     *baton.Session
	client   int // number of the client instance behind sess
	unknown  int
	lists    int // lists begun
	elements int
	over     bool
}

// run drives slots until ctx ends and returns when all operations have.
func (l *load) run(ctx context.Context, slots int) {
	var wg sync.WaitGroup
	for k := range slots {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(l.seed, uint64(k)))
			for g := 0; ctx.Err() == nil; g++ {
				l.slot(ctx, k, g, rng)
			}
		}()
	}
	wg.Wait()
}

// ids lists the sessions with load, for faults to pick from.
func (l *load) ids() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for id := range l.live {
		out = append(out, id)
	}
	return out
}

// number gives each client instance its own number in the history.
func (l *load) number() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nextID++
	return l.nextID
}

// slot lives one session.
func (l *load) slot(ctx context.Context, k, g int, rng *rand.Rand) {
	n := &lane{load: l, kind: slotKinds[k%len(slotKinds)], home: k % len(l.clients)}
	n.id = fmt.Sprintf("jl-%d-%s-%d-%d", l.seed%1000000, n.kind, k, g)
	if !n.open(ctx) {
		return
	}
	l.mu.Lock()
	l.live[n.id] = true
	l.mu.Unlock()
	span, cancel := context.WithTimeout(ctx, generation/2+time.Duration(rng.Int64N(int64(generation))))
	defer cancel()
	var wg sync.WaitGroup
	hands := 2 + rng.IntN(2)
	switch n.kind {
	case shared:
		hands = 0
		n.share(span, rng, &wg)
	case churning:
		hands = 0
		n.churn(span, rng, &wg)
	case streams:
		hands = streamHands
	case theft:
		hands = 1
	}
	for h := range hands {
		wg.Add(1)
		hand := rand.New(rand.NewPCG(rng.Uint64(), uint64(h)))
		go func() {
			defer wg.Done()
			n.work(span, hand)
		}()
	}
	if n.kind == register || n.kind == appends {
		wg.Add(1)
		displacer := rand.New(rand.NewPCG(rng.Uint64(), 99))
		go func() {
			defer wg.Done()
			n.displace(span, displacer)
		}()
	}
	wg.Wait()
	if n.kind != pushes { // which is to get all of them
		s, _ := n.current()
		leave(s)
	}
	l.mu.Lock()
	delete(l.live, n.id)
	l.finished = append(l.finished, n)
	l.mu.Unlock()
}

// open opens the lane's session; a lost reply is retried by the client. It may
// fail while there is no quorum: then there is no session to check.
func (n *lane) open(ctx context.Context) bool {
	octx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	s, err := n.load.clients[n.home].Open(octx, baton.OpenOptions{ID: n.id, TTL: lifeTTL, Shared: n.kind == shared})
	if err != nil {
		if octx.Err() == nil {
			n.load.complain("open", n.id, err.Error())
			pause(ctx, time.Second)
		}
		return false
	}
	n.adopt(s)
	n.secret = s.Secret()
	return true
}

// adopt makes s the lane's Session.
func (n *lane) adopt(s *baton.Session) {
	number := n.load.number()
	s.OnPush(func(p baton.Push) {
		n.load.rec.Push(history.Received{Client: number, Session: n.id, Seq: p.Seq, Epoch: p.Epoch, Payload: string(p.Payload)})
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sess, n.client = s, number
}

func (n *lane) current() (*baton.Session, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sess, n.client
}

// spent reports whether the lane has had enough.
func (n *lane) spent(ctx context.Context) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.over || n.unknown >= unknownMax || ctx.Err() != nil
}

// work makes operations one after another.
func (n *lane) work(ctx context.Context, rng *rand.Rand) {
	for !n.spent(ctx) {
		s, client := n.current()
		if s.Err() != nil { // displaced; its successor is about to be adopted
			n.gone(client, s.Err())
			pause(ctx, 10*time.Millisecond)
			continue
		}
		switch n.kind {
		case counter:
			n.count(s, client, rng)
		case register:
			n.write(s, client, rng)
		case appends:
			n.extend(s, client, rng)
		case pushes:
			n.push(s, client, rng)
		case streams:
			n.flow(s, rng)
		case theft:
			n.tempt(s, rng)
			n.count(s, client, rng)
			pause(ctx, time.Second)
		}
		pause(ctx, n.load.think/2+time.Duration(rng.Int64N(int64(n.load.think)+1)))
	}
}

// displace attaches another client now and then, which ends the former one.
func (n *lane) displace(ctx context.Context, rng *rand.Rand) {
	var ghosts sync.WaitGroup
	defer ghosts.Wait()
	for {
		n.load.await(ctx, 3*time.Second+time.Duration(rng.Int64N(int64(12*time.Second))))
		if n.spent(ctx) {
			return
		}
		old, client := n.current()
		rctx, cancel := context.WithTimeout(ctx, opLimit)
		s, err := n.load.clients[rng.IntN(len(n.load.clients))].Resume(rctx, n.id, n.secret)
		cancel()
		switch {
		case err == nil:
			n.adopt(s)
			ghosts.Add(1)
			go func() {
				defer ghosts.Done()
				n.haunt(ctx, old, client)
			}()
		case rctx.Err() == nil:
			n.load.complain("resume", n.id, err.Error())
		}
	}
}

// hauntFor is how long a displaced client goes on reading.
const hauntFor = time.Second

// haunt reads through a displaced client that may not know yet: what it is told
// must be as good as anybody's, or an error.
func (n *lane) haunt(ctx context.Context, s *baton.Session, client int) {
	ctx, cancel := context.WithTimeout(ctx, hauntFor)
	defer cancel()
	defer leave(s)
	for ctx.Err() == nil && s.Err() == nil {
		n.mu.Lock()
		key := listKey(n.lists)
		n.mu.Unlock()
		if n.kind == register {
			key = "r"
		}
		if _, ok := n.get(s, client, key); !ok {
			return
		}
		pause(ctx, 5*time.Millisecond)
	}
}

// leaveLimit is for how long a client tries to say that it leaves.
const leaveLimit = 2 * time.Second

// leave has a client leave for good. One that has been displaced, and has not heard
// of it, would attach again when its connection breaks, and displace its successor.
func leave(s *baton.Session) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	_ = s.Detach(ctx) // or it was displaced, or cannot reach anybody: it has ended here
}

// await sleeps for d, until ctx ends, or until displaceAll.
func (l *load) await(ctx context.Context, d time.Duration) {
	l.mu.Lock()
	poke := l.poke
	l.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-poke:
	case <-ctx.Done():
	}
}

// displaceAll wakes every displacer.
func (l *load) displaceAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.poke)
	l.poke = make(chan struct{})
}

func (n *lane) count(s *baton.Session, client int, rng *rand.Rand) {
	if rng.IntN(4) == 0 {
		n.get(s, client, "n")
		return
	}
	n.do(client, history.Op{Key: "n", Kind: history.Incr, Arg: "1"}, func(ctx context.Context) (string, baton.Reply, error) {
		sum, r, err := s.Incr(ctx, "n", 1)
		return strconv.FormatInt(sum, 10), r, err
	})
}

func (n *lane) write(s *baton.Session, client int, rng *rand.Rand) {
	if rng.IntN(2) == 0 {
		n.get(s, client, "r")
		return
	}
	value := n.unique(rng)
	n.do(client, history.Op{Key: "r", Kind: history.Put, Arg: value}, func(ctx context.Context) (string, baton.Reply, error) {
		r, err := s.Put(ctx, "r", []byte(value))
		return "", r, err
	})
}

func (n *lane) push(s *baton.Session, client int, rng *rand.Rand) {
	value := n.unique(rng)
	n.do(client, history.Op{Key: "push", Kind: history.Push, Arg: value}, func(ctx context.Context) (string, baton.Reply, error) {
		r, err := s.Push(ctx, []byte(value))
		return "", r, err
	})
}

// extend reads a list and sets it to itself with one element more. The list's
// name says how many came before it.
func (n *lane) extend(s *baton.Session, client int, rng *rand.Rand) {
	n.mu.Lock()
	if n.elements++; n.elements%listMax == 0 {
		n.lists++
	}
	key := listKey(n.lists)
	n.mu.Unlock()
	old, ok := n.get(s, client, key)
	if !ok {
		return
	}
	element := n.unique(rng)
	value := element
	if old != "" {
		value = old + "," + element
	}
	n.do(client, history.Op{Key: key, Kind: history.CAS, Old: old, Arg: value}, func(ctx context.Context) (string, baton.Reply, error) {
		var was []byte // nil: absent
		if old != "" {
			was = []byte(old)
		}
		done, r, err := s.CompareAndSet(ctx, key, was, []byte(value))
		return strconv.FormatBool(done), r, err
	})
}

func listKey(k int) string { return fmt.Sprintf("list%03d", k) }

// element is what an append added.
func element(op *history.Op) string {
	return op.Arg[strings.LastIndexByte(op.Arg, ',')+1:]
}

func (n *lane) unique(rng *rand.Rand) string { return strconv.FormatUint(rng.Uint64(), 36) }

func (n *lane) get(s *baton.Session, client int, key string) (string, bool) {
	op := n.do(client, history.Op{Key: key, Kind: history.Get}, func(ctx context.Context) (string, baton.Reply, error) {
		v, err := s.Get(ctx, key)
		return string(v.Value), baton.Reply{Epoch: v.Epoch, Node: v.Owner, Change: v.Index, Leased: v.Leased, At: v.At}, err
	})
	return op.Ret, op.Outcome == history.OK
}

// do runs one operation and records it. It has a deadline of its own: an
// operation is never cut short because the load ends.
func (n *lane) do(client int, op history.Op, call func(context.Context) (string, baton.Reply, error)) history.Op {
	ctx, cancel := context.WithTimeout(context.Background(), opLimit)
	defer cancel()
	op.Client, op.Session = client, n.id
	op.Call = n.load.rec.Now()
	ret, r, err := call(ctx)
	op.Return = n.load.rec.Now()
	op.Outcome = outcome(err)
	if err == nil {
		op.Ret, op.Epoch, op.Change, op.Node, op.Attempts = ret, r.Epoch, r.Change, r.Node, r.Attempts
		if op.Leased = r.Leased; op.Leased {
			op.Taken = n.load.rec.At(r.At)
		}
	} else {
		op.Error = err.Error()
	}
	n.load.rec.Add(op)
	n.note(op, err)
	return op
}

// note counts the unknown outcomes that make a check costly.
func (n *lane) note(op history.Op, err error) {
	if op.Outcome == history.Unknown && (op.Kind == history.Incr || op.Kind == history.CAS) {
		n.mu.Lock()
		n.unknown++
		n.mu.Unlock()
	}
	code := baton.CodeOf(err).Label()
	if code == "not_attached" && n.replaced(op.Client) {
		return // begun on a client that was displaced, and has left since
	}
	switch code {
	case "ok", "deadline_exceeded", "displaced", "unavailable", "retry", "overloaded", "shutting_down", "cancelled":
	default:
		n.end("session", fmt.Sprintf("%s %s: %v", op.Kind, op.Key, err))
	}
}

// replaced reports whether a client instance has given way to another of ours.
func (n *lane) replaced(client int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return (n.kind == register || n.kind == appends) && client != n.client
}

// gone is told that a client instance's Session has ended. Only being displaced
// by another instance of ours is a good reason.
func (n *lane) gone(client int, why error) {
	switch {
	case baton.CodeOf(why).Label() != "displaced":
		n.end("session", why.Error())
	case n.kind != register && n.kind != appends:
		n.end("displaced", "the only client of the session was displaced")
	}
}

// end stops the lane's load and says why, once.
func (n *lane) end(check, detail string) {
	n.mu.Lock()
	was := n.over
	n.over = true
	n.mu.Unlock()
	if !was {
		n.load.complain(check, n.id, detail)
	}
}

// outcome sorts errors. Only a settled cancellation proves that a write did
// not happen; everything else may have.
func outcome(err error) history.Outcome {
	switch {
	case err == nil:
		return history.OK
	case baton.CodeOf(err).Label() == "cancelled":
		return history.Fail
	}
	return history.Unknown
}

// pause sleeps for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
