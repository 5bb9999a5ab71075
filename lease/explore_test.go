package lease

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// The explorer searches, breadth first, every order of a bounded number of
// steps, over the code that ships: three servers (and one more that may get a
// vote), a worker with one incarnation, and leaders that poll. Time passes in
// ticks, in which the servers' clocks run (1+ρ) times as fast as the worker's:
// the bound. Messages may be late for ever, which is loss, and overtake each
// other. The log is raft's, reduced to what the rules look at: who has which
// entries, what is committed, what is applied.
//
// The invariant: once a fence of the incarnation is committed and accepted, the
// worker's lease is over, whenever it looks.
const (
	tick  = 100 * time.Millisecond // on the worker's clock
	tickS = tick * (rhoDen + rhoNum) / rhoDen
	// expT is a lease of two ticks.
	expT = 2 * tickS
	// coarse is how far behind a clock may be read.
	coarse = 4 * time.Millisecond
	expInc = 7
)

// entry is a log entry: a set of voters, or a fence counted in a configuration.
type entry struct {
	term   int
	voters string // "abc"; "": a fence
	config uint64 // of the fence
}

// mutant takes one rule out. The zero value is the product.
type mutant struct {
	name string
	// holder
	noMargin, noDrift, replyTime bool
	// server
	forgetsWithdrawal, noQuiet, quietT, noConfigCheck, logOnly bool
	// leader and log
	noVoterWait bool
}

type message struct {
	kind   byte // r(enewal), g(rant), q(uestion), a(nswer)
	to     byte
	ren    Renewal
	grant  Grant
	ask    Ask
	prom   Promise
	leader byte
}

type server struct {
	up      bool
	srv     *Server
	disk    []uint64 // withdrawals
	log     []entry
	term    int
	applied int // entries
	changed time.Duration
	leads   int // term it leads, 0: none
	poll    *Poll
}

type bounds struct {
	ticks, longs, rounds, crashes, changes, elections, polls, asks, late int
}

type model struct {
	m       mutant
	now     time.Duration // the worker's clock
	nowS    time.Duration // all servers'
	holder  Holder
	servers map[byte]*server
	net     []message
	left    bounds
	bounded bounds
	commit  int // entries committed
	fenced  bool
	story   []string
}

const allServers = "abcd"

func newModel(m mutant, b bounds) *model {
	x := &model{m: m, now: time.Minute, nowS: time.Minute, servers: map[byte]*server{}, left: b, bounded: b, commit: 1}
	for _, id := range []byte(allServers) {
		x.servers[id] = &server{up: true, srv: NewServer(x.nowS, nil, true), changed: -time.Hour}
		if id != 'd' {
			x.servers[id].log = []entry{{voters: "abc"}}
			x.servers[id].applied = 1
		}
	}
	for _, id := range []byte("abc") {
		x.servers[id].term = 1
	}
	x.servers['a'].leads = 1
	x.holder.Begin(expInc, x.now)
	x.holder.SetVoters(1, strings.Split("abc", ""))
	return x
}

// config is the last voter configuration in the first n entries, by its index.
func config(log []entry, n int) (index uint64, voters string) {
	for i, e := range log[:n] {
		if e.voters != "" {
			index, voters = uint64(i+1), e.voters
		}
	}
	return index, voters
}

// fencedIn reports whether the first n entries hold a fence that is accepted.
func (x *model) fencedIn(log []entry, n int) bool {
	for i, e := range log[:n] {
		if e.voters == "" {
			if in, _ := config(log, i); e.config >= in {
				return true
			}
		}
	}
	return false
}

func (x *model) clone() *model {
	c := *x
	c.net = slices.Clone(x.net)
	c.story = slices.Clone(x.story)
	c.holder.waiting = slices.Clone(x.holder.waiting)
	c.holder.grants = map[string]granted{}
	for k, v := range x.holder.grants {
		c.holder.grants[k] = v
	}
	c.servers = map[byte]*server{}
	for id, s := range x.servers {
		n := *s
		n.srv = NewServer(0, s.srv.Withdrawals(), true)
		n.srv.quiet = s.srv.quiet
		for k, v := range s.srv.promises {
			n.srv.promises[k] = v
		}
		n.log = slices.Clone(s.log)
		if s.poll != nil {
			p := *s.poll
			p.answers = map[string]answer{}
			for k, v := range s.poll.answers {
				p.answers[k] = v
			}
			n.poll = &p
		}
		c.servers[id] = &n
	}
	return &c
}

// key is the state without its story: times count from now, what has passed is
// all the same.
func (x *model) key() string {
	k := make(keyer, 0, 512)
	k.add(x.left.ticks, x.left.longs, x.left.rounds, x.left.crashes, x.left.changes, x.left.elections, x.left.polls, x.left.asks, x.left.late, x.commit)
	k.add(int(x.holder.incarnation), int(x.holder.config), since(x.holder.until, x.now), flag(x.holder.held))
	for _, s := range x.holder.waiting {
		k.add('w', int(s.Server[0]), int(s.Nonce), int(s.Config), since(s.at, x.now))
	}
	for _, v := range []byte(allServers) {
		if g, ok := x.holder.grants[string(v)]; ok {
			k.add('g', int(v), since(g.at, x.now))
		}
	}
	for _, id := range []byte(allServers) {
		s := x.servers[id]
		k.add('s', flag(s.up), len(s.disk), flag(s.srv.withdrawn[expInc]), since(s.srv.promises[expInc], x.nowS), since(s.srv.quiet, x.nowS),
			s.term, s.applied, s.leads, since(s.changed+VoterWait, x.nowS))
		for _, e := range s.log {
			k.add('e', e.term, len(e.voters), int(e.config))
		}
		if p := s.poll; p != nil {
			k.add('p', int(p.config), p.round, since(p.next, x.nowS), flag(p.isOut), flag(p.withdrawing))
			for _, v := range p.voters {
				a, ok := p.answers[v]
				k.add(flag(ok), flag(a.Withdrawn), flag(a.Left == 0), a.round-p.round, flag(a.asked), since(a.runsOut, x.nowS))
			}
		}
	}
	lines := make([]string, len(x.net))
	for i, m := range x.net {
		var l keyer
		l.add(int(m.kind), int(m.to), int(m.ren.Nonce), int(m.grant.Nonce), int(m.grant.Code), int(m.leader), m.ask.round, flag(m.ask.Withdraw),
			flag(m.prom.Withdrawn), int(m.prom.Left))
		lines[i] = string(l)
	}
	slices.Sort(lines)
	return string(k) + strings.Join(lines, "m")
}

type keyer []byte

func (k *keyer) add(vs ...int) {
	for _, v := range vs {
		*k = binary.AppendVarint(*k, int64(v))
	}
}

func flag(v bool) int {
	if v {
		return 1
	}
	return 0
}

// since is t as told from now; what has passed is all the same.
func since(t, now time.Duration) int { return int(max(t-now, -2*TMax)) }

// violated is the invariant.
func (x *model) violated() bool {
	if !x.fenced {
		return false
	}
	at := x.now - coarse // the worker's clock may be read late
	if x.m.noMargin {
		at -= Margin
	}
	_, ok := x.holder.Left(expInc, at)
	return ok
}

// settled reports that nothing can break the invariant any more: the lease is
// over, or there never was one, and no renewal is under way.
func (x *model) settled() bool {
	if x.holder.incarnation == 0 {
		return true
	}
	if x.left.rounds > 0 || slices.ContainsFunc(x.net, func(m message) bool { return m.kind == 'r' || m.kind == 'g' }) {
		return false
	}
	return !x.holder.held || x.now-coarse-Margin >= x.holder.until
}

// next are all states one step on.
func (x *model) next() (out []*model) {
	if x.fenced { // time and the log only make it better
		for i, m := range x.net {
			if m.kind == 'r' || m.kind == 'g' {
				c := x.clone()
				c.deliver(i, false)
				c.story = append(c.story, fmt.Sprintf("%s arrives", m))
				out = append(out, c)
			}
		}
		return out
	}
	step := func(what string, fn func(c *model) bool) {
		c := x.clone()
		if fn(c) {
			c.story = append(c.story, what)
			out = append(out, c)
		}
	}
	if x.left.ticks > 0 {
		step("a tick passes", func(c *model) bool { return c.pass(tick, tickS, &c.left.ticks) })
	}
	if x.left.longs > 0 {
		step("T_MAX passes", func(c *model) bool { return c.pass(TMax, VoterWait, &c.left.longs) })
	}
	if x.left.rounds > 0 {
		step("the worker renews", (*model).renew)
	}
	for i, m := range x.net {
		step(fmt.Sprintf("%s arrives", m), func(c *model) bool { return c.deliver(i, false) })
		if x.left.late > 0 && m.kind == 'r' {
			step(fmt.Sprintf("%s arrives, the answer is late", m), func(c *model) bool { return c.deliver(i, true) })
		}
	}
	for _, id := range []byte(allServers) {
		s := x.servers[id]
		if !s.up {
			step(fmt.Sprintf("%c starts again", id), func(c *model) bool { return c.restart(id) })
			continue
		}
		if x.left.crashes > 0 {
			step(fmt.Sprintf("%c crashes", id), func(c *model) bool { return c.crash(id) })
		}
		if x.left.elections > 0 {
			step(fmt.Sprintf("%c is elected", id), func(c *model) bool { return c.elect(id) })
		}
		if n := min(x.commit, len(s.log)); s.applied < n {
			step(fmt.Sprintf("%c applies", id), func(c *model) bool { return c.apply(id) })
		}
		if s.leads == 0 {
			continue
		}
		for _, to := range []byte(allServers) {
			if to != id && (to != 'd' || x.withD()) {
				step(fmt.Sprintf("%c replicates to %c", id, to), func(c *model) bool { return c.replicate(id, to) })
			}
		}
		if x.left.changes > 0 {
			for _, v := range []string{"ab", "abcd", "abd"} {
				step(fmt.Sprintf("%c makes the voters %s", id, v), func(c *model) bool { return c.change(id, v) })
			}
		}
		for _, lost := range []byte("-abc")[:4*flag(x.left.polls > 0 || s.poll != nil)] {
			step(fmt.Sprintf("%c polls, without an answer from %c", id, lost), func(c *model) bool { return c.stepPoll(id, lost) })
		}
	}
	// The worker learns of the voters from any server that has applied them.
	for _, id := range []byte(allServers) {
		if in, v := config(x.servers[id].log, x.servers[id].applied); in > x.holder.config {
			step(fmt.Sprintf("the worker hears of voters %s", v), func(c *model) bool {
				c.holder.SetVoters(in, strings.Split(v, ""))
				return true
			})
			break
		}
	}
	return out
}

// withD reports whether the fourth server plays a part.
func (x *model) withD() bool { return x.bounded.changes > 0 }

func (x *model) pass(worker, servers time.Duration, budget *int) bool {
	*budget--
	x.now += worker
	x.nowS += servers
	return true
}

func (x *model) renew() bool {
	x.left.rounds--
	x.holder.leader = x.now
	for _, r := range x.holder.Renew(x.now, expT) {
		x.net = append(x.net, message{kind: 'r', to: r.Server[0], ren: r})
	}
	return true
}

func (m message) String() string {
	switch {
	case m.kind == 'r':
		return fmt.Sprintf("a renewal to %c", m.to)
	case m.kind == 'g':
		return fmt.Sprintf("an answer (%v) from %s", m.grant.Code, m.grant.Server)
	case m.kind == 'q' && m.ask.Withdraw:
		return fmt.Sprintf("a request to withdraw from %c to %c", m.leader, m.to)
	case m.kind == 'q':
		return fmt.Sprintf("a question from %c to %c", m.leader, m.to)
	}
	return fmt.Sprintf("an answer (%v, withdrawn %v) from %c to %c", m.prom.Left, m.prom.Withdrawn, m.to, m.leader)
}

// deliver brings the i-th message. Its answer comes at once, or may be late.
func (x *model) deliver(i int, late bool) bool {
	m := x.net[i]
	x.net = slices.Delete(x.net, i, i+1)
	if late {
		x.left.late--
		x.receive(m)
	} else {
		x.deliverNow(m)
	}
	return true
}

func (x *model) receive(m message) bool {
	if m.kind == 'g' {
		if x.m.replyTime {
			for i := range x.holder.waiting {
				if x.holder.waiting[i].Nonce == m.grant.Nonce {
					x.holder.waiting[i].at = x.now
				}
			}
		}
		if x.holder.Receive(m.grant) {
			x.holder.Begin(0, x.now)
		} else if x.m.noDrift && x.holder.held {
			x.driftless()
		}
		return true
	}
	s := x.servers[m.to]
	if m.kind == 'a' {
		if s = x.servers[m.leader]; s.up && s.poll != nil && s.poll.round >= m.ask.round {
			s.poll.Answered(x.nowS, m.ask, m.prom)
		}
		return true
	}
	if !s.up {
		return true // lost with the connection
	}
	if m.kind == 'r' {
		facts := x.facts(s, m.ren)
		code := s.srv.Grant(x.nowS-coarse, m.ren, facts)
		x.net = append(x.net, message{kind: 'g', to: 'w', grant: Grant{Server: string(m.to), Nonce: m.ren.Nonce, T: m.ren.T, Code: code}})
		return true
	}
	p := s.srv.Promise(x.nowS, expInc)
	if m.ask.Withdraw {
		p = s.srv.Withdraw(x.nowS, expInc)
	}
	if !x.m.forgetsWithdrawal {
		s.disk = s.srv.Withdrawals()
	}
	x.net = append(x.net, message{kind: 'a', to: m.to, leader: m.leader, ask: m.ask, prom: p})
	return true
}

// driftless counts leases as if all clocks ran alike.
func (x *model) driftless() {
	var ends []time.Duration
	for _, v := range x.holder.voters {
		if g, ok := x.holder.grants[v]; ok {
			ends = append(ends, g.at+g.t-Margin)
		}
	}
	slices.Sort(ends)
	if need := Majority(len(x.holder.voters)); len(ends) >= need {
		x.holder.until = max(x.holder.until, ends[len(ends)-need])
	}
}

func (x *model) facts(s *server, r Renewal) Facts {
	var f Facts
	f.Applied, _ = config(s.log, s.applied)
	f.Logged, _ = config(s.log, len(s.log))
	f.Past = x.fencedIn(s.log, s.applied)
	f.Current, f.CaughtUp = !f.Past && s.applied > 0, true
	if x.m.noConfigCheck {
		f.Applied, f.Logged = r.Config, r.Config
	}
	if x.m.logOnly {
		f.Applied = f.Logged
	}
	return f
}

func (x *model) crash(id byte) bool {
	x.left.crashes--
	s := x.servers[id]
	s.up, s.leads, s.poll, s.srv = false, 0, nil, NewServer(x.nowS, nil, true)
	return true
}

func (x *model) restart(id byte) bool {
	s := x.servers[id]
	s.up, s.changed = true, x.nowS
	s.srv = NewServer(x.nowS, s.disk, false)
	switch {
	case x.m.noQuiet:
		s.srv = NewServer(x.nowS, s.disk, true)
	case x.m.quietT: // waits for a T that was lowered since
		s.srv.quiet = x.nowS + tickS
	}
	return true
}

// elect makes id leader if a majority of its latest voters is up and not ahead.
func (x *model) elect(id byte) bool {
	s := x.servers[id]
	_, voters := config(s.log, len(s.log))
	if !strings.Contains(voters, string(id)) || s.leads != 0 {
		return false
	}
	term, votes := 0, ""
	for _, o := range x.servers {
		term = max(term, o.term)
	}
	for _, v := range []byte(voters) {
		if o := x.servers[v]; o.up && !ahead(o.log, s.log) {
			votes += string(v)
		}
	}
	if len(votes) < Majority(len(voters)) {
		return false
	}
	x.left.elections--
	for _, v := range []byte(votes) {
		x.servers[v].term, x.servers[v].leads, x.servers[v].poll = term+1, 0, nil
	}
	s.leads = term + 1
	return true
}

func ahead(a, b []entry) bool {
	if len(a) == 0 {
		return false
	}
	if len(b) == 0 {
		return true
	}
	if ta, tb := a[len(a)-1].term, b[len(b)-1].term; ta != tb {
		return ta > tb
	}
	return len(a) > len(b)
}

func (x *model) replicate(from, to byte) bool {
	l, s := x.servers[from], x.servers[to]
	if !s.up || s.term > l.leads || s.term == l.leads && slices.Equal(s.log, l.log) {
		return false
	}
	s.term, s.leads, s.poll = l.leads, 0, nil
	s.log = slices.Clone(l.log)
	s.applied = min(s.applied, len(s.log))
	x.count(from)
	return true
}

// count commits what a majority of the leader's voters has of its term.
func (x *model) count(id byte) {
	l := x.servers[id]
	for n := len(l.log); n > x.commit; n-- {
		if l.log[n-1].term != l.leads {
			return
		}
		_, voters := config(l.log, len(l.log))
		have := 0
		for _, v := range []byte(voters) {
			if o := x.servers[v].log; len(o) >= n && slices.Equal(o[:n], l.log[:n]) {
				have++
			}
		}
		if have >= Majority(len(voters)) {
			x.commit = n
			x.fenced = x.fenced || x.fencedIn(l.log, n)
			x.apply(id)
			return
		}
	}
}

func (x *model) apply(id byte) bool {
	s := x.servers[id]
	before, _ := config(s.log, s.applied)
	s.applied = min(x.commit, len(s.log))
	if after, _ := config(s.log, s.applied); after != before {
		s.changed = x.nowS
	}
	return true
}

// change appends other voters, one more or one fewer, once the last change is
// committed.
func (x *model) change(id byte, voters string) bool {
	s := x.servers[id]
	if in, now := config(s.log, len(s.log)); now == voters || int(in) > x.commit || len(now)-len(voters) > 1 || len(voters)-len(now) > 1 {
		return false
	}
	x.left.changes--
	s.log = append(s.log, entry{term: s.leads, voters: voters})
	x.count(id)
	return true
}

// stepPoll takes one step of a leader's poll. Its questions are answered at once,
// but for one server's: a late one is the same as one that is asked later.
func (x *model) stepPoll(id, lost byte) bool {
	s := x.servers[id]
	in, voters := config(s.log, s.applied)
	logged, _ := config(s.log, len(s.log))
	may := logged == in && x.nowS >= s.changed+VoterWait || x.m.noVoterWait
	if s.poll == nil || s.poll.config != in {
		if x.left.polls == 0 {
			return false
		}
		x.left.polls--
		s.poll = NewPoll(x.nowS, expInc, in, strings.Split(voters, ""))
	}
	if s.poll.State() == PollAgreed {
		if !may || x.fencedIn(s.log, len(s.log)) {
			return false
		}
		s.log = append(s.log, entry{term: s.leads, config: in})
		x.count(id)
		return true
	}
	round := s.poll.round
	asks, _ := s.poll.Step(x.nowS, Keys{Dead: true, T: expT, MayFence: may})
	if s.poll.round > round {
		if x.left.asks == 0 {
			return false
		}
		x.left.asks--
	}
	for _, a := range asks {
		m := message{kind: 'q', to: a.Server[0], ask: a, leader: id}
		if m.to != lost {
			x.deliverNow(m)
		}
	}
	return len(asks) > 0
}

// deliverNow brings a message and its answer.
func (x *model) deliverNow(m message) {
	n := len(x.net)
	x.receive(m)
	if len(x.net) > n {
		answer := x.net[n]
		x.net = x.net[:n]
		x.receive(answer)
	}
}

// begin is the model after the steps of a story.
func begin(t *testing.T, m mutant, b bounds, story []string) *model {
	t.Helper()
	x := newModel(m, b)
	for _, step := range story {
		all := x.next()
		i := slices.IndexFunc(all, func(n *model) bool { return n.story[len(n.story)-1] == step })
		if i < 0 {
			t.Fatalf("no such step: %q after %q", step, x.story)
		}
		x = all[i]
	}
	return x
}

// explore searches up to states states and returns the shortest story of a
// violation, if there is one.
func explore(from *model, states int) (story []string, seen int, complete bool) {
	known := map[string]bool{}
	queue := []*model{from}
	for len(queue) > 0 {
		x := queue[0]
		queue = queue[1:]
		for _, n := range x.next() {
			k := n.key()
			if known[k] {
				continue
			}
			if n.violated() {
				return n.story, len(known), false
			}
			if len(known) >= states {
				return nil, len(known), false
			}
			known[k] = true
			if !n.settled() {
				queue = append(queue, n)
			}
		}
	}
	return nil, len(known), true
}

// scopes are what is searched, from where, and which mutants must show in each. The
// bounds are such that each is searched to its end.
var scopes = []struct {
	name string
	from []string
	bounds
	mutants []mutant
}{
	{"clocks", nil, bounds{ticks: 2, rounds: 1, polls: 1, asks: 1}, []mutant{
		{name: "a lease without margin", noMargin: true},
		{name: "a lease without drift", noDrift: true},
	}},
	{"late answers", nil, bounds{ticks: 2, rounds: 1, polls: 1, asks: 1, late: 2}, []mutant{
		{name: "a lease counted from the answer", replyTime: true},
	}},
	{"restarts", nil, bounds{ticks: 1, rounds: 1, polls: 1, asks: 1, crashes: 1}, []mutant{
		{name: "withdrawals right after a restart", noQuiet: true},
		{name: "a restart waits for a T that was lowered", quietT: true},
		{name: "a withdrawal not persisted", forgetsWithdrawal: true},
	}},
	// Two of the old voters, abc, would promise a lease, or have, while two of the
	// new, abd, agree to a fence. Stories of that from the very beginning are too long
	// to search for, so what leads there is given, and the search is of all that may
	// follow.
	{"voters have changed", slices.Concat(moved, []string{"T_MAX passes"}),
		bounds{longs: 1, rounds: 1, polls: 1, asks: 1, changes: 2}, []mutant{
			{name: "a grant without the configuration's check", noConfigCheck: true},
		}},
	{"voters change under a lease", slices.Concat(leased, moved[:3]), bounds{rounds: 1, polls: 1, asks: 1, changes: 2}, []mutant{
		{name: "no wait after a change of the voters", noVoterWait: true},
	}},
}

// moved is how c's vote goes to d, and leased how b and c promise a lease.
var (
	moved = []string{
		"a makes the voters abcd", "a replicates to c", "a replicates to d", "a makes the voters abd", "a replicates to d",
	}
	leased = []string{"the worker renews", "a renewal to b arrives", "a renewal to c arrives"}
)

// statesMax bounds a search; the scopes are well below it.
const statesMax = 200_000

// TestExplore searches each scope to its end.
func TestExplore(t *testing.T) {
	for _, sc := range scopes {
		t.Run(sc.name, func(t *testing.T) {
			story, seen, complete := explore(begin(t, mutant{}, sc.bounds, sc.from), statesMax)
			if story != nil || !complete {
				t.Fatalf("%d states, to the end: %v; served under a lease after the fence:\n%s", seen, complete, strings.Join(story, "\n"))
			}
			t.Logf("%d states, bounds %+v", seen, sc.bounds)
		})
	}
}

// TestExploreMutants: with one rule taken out, the same search finds a read that
// is served after the fence.
func TestExploreMutants(t *testing.T) {
	for _, sc := range scopes {
		for _, m := range sc.mutants {
			t.Run(m.name, func(t *testing.T) {
				story, seen, _ := explore(begin(t, m, sc.bounds, sc.from), statesMax)
				if story == nil {
					t.Fatalf("not found in %d states", seen)
				}
				t.Logf("found after %d states:\n%s", seen, strings.Join(story, "\n"))
			})
		}
	}
}
