package lease

import (
	"fmt"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

var three = []string{"a", "b", "c"}

// play lets a poll ask three servers, of which the worker renews with the first
// renewing ones at each quarter of T, until it agrees or limit has passed. The
// first is the one that asks; the others' answers take rtt. It returns when it
// agreed, and how many servers withdrew.
func play(t *testing.T, renewing int, k func(now time.Duration) Keys, rtt, limit time.Duration) (agreed time.Duration, withdrawn int) {
	servers := map[string]*Server{}
	facts := Facts{Current: true, CaughtUp: true}
	const T = TDefault
	for i, id := range three {
		servers[id] = NewServer(0, nil, true)
		if i >= renewing {
			if code := servers[id].Grant(0, Renewal{Incarnation: 1, T: T}, facts); code != wire.Code_OK {
				t.Fatal(code)
			}
		}
	}
	p := NewPoll(T/2, 1, 0, three)
	due := map[time.Duration][]func(){}
	for now := time.Duration(0); now < limit; now += time.Millisecond {
		if now%(T/RenewalsPerLease) == 0 {
			for _, id := range three[:renewing] {
				servers[id].Grant(now, Renewal{Incarnation: 1, T: T}, facts)
			}
		}
		if now < T/2 {
			continue
		}
		for _, fn := range due[now] {
			fn()
		}
		delete(due, now)
		asks, _ := p.Step(now, k(now))
		for _, a := range asks {
			there, back := now+rtt/2, now+rtt
			if a.Server == three[0] {
				there, back = now+time.Millisecond, now+time.Millisecond
			}
			due[there] = append(due[there], func() {
				got := servers[a.Server].Promise(there, 1)
				if a.Withdraw {
					got = servers[a.Server].Withdraw(there, 1)
				}
				if back == there {
					p.Answered(back, a, got)
				} else {
					due[back] = append(due[back], func() { p.Answered(back, a, got) })
				}
			})
		}
		if p.State() == PollAgreed && agreed == 0 {
			agreed = now
		}
	}
	for _, s := range servers {
		withdrawn += len(s.Withdrawals())
	}
	return agreed, withdrawn
}

// A poll of a worker that renews with a majority asks nobody to withdraw, however
// long it lasts: it strands no healthy worker. One of a silent worker agrees as
// the promises run out, or one T later where a key is missing, or not before L4
// allows. It does so however far apart the servers are, within a few round trips.
func TestPoll(t *testing.T) {
	const T = TDefault
	for name, c := range map[string]struct {
		renewing int
		keys     Keys
		agreed   time.Duration // 0: never
	}{
		"renews with all":     {3, Keys{Dead: true, T: T, MayFence: true}, 0},
		"renews with two":     {2, Keys{Dead: true, T: T, MayFence: true}, 0},
		"renews with one":     {1, Keys{Dead: true, T: T, MayFence: true}, T},
		"silent":              {0, Keys{Dead: true, T: T, MayFence: true}, T},
		"silent, no key":      {0, Keys{T: T, MayFence: true}, T + Stretch(T)},
		"silent, voters move": {0, Keys{Dead: true, T: T}, 0},
	} {
		for _, rtt := range []time.Duration{2, 40, 50, 60, 100, 150, 300} {
			rtt *= time.Millisecond
			t.Run(fmt.Sprint(name, ", ", rtt), func(t *testing.T) {
				agreed, withdrawn := play(t, c.renewing, func(time.Duration) Keys { return c.keys }, rtt, 6*T)
				if c.agreed == 0 && (agreed != 0 || withdrawn != 0) {
					t.Fatalf("agreed after %v, %d withdrew", agreed, withdrawn)
				}
				if c.agreed != 0 && (agreed < c.agreed || agreed > c.agreed+10*time.Millisecond+5*rtt) {
					t.Fatalf("agreed after %v, want %v", agreed, c.agreed)
				}
			})
		}
	}
}

// With a short T its servers may be further apart than half of it.
func TestPollWithAShortT(t *testing.T) {
	p := NewPoll(0, 1, 0, three)
	k := Keys{Dead: true, T: TMin, MayFence: true}
	late := map[time.Duration][]Ask{}
	for now := time.Duration(0); now < 20*time.Second; now += time.Millisecond {
		for _, a := range late[now] {
			p.Answered(now, a, Promise{Withdrawn: a.Withdraw})
		}
		asks, _ := p.Step(now, k)
		late[now+300*time.Millisecond] = asks
		if p.State() == PollAgreed {
			return
		}
	}
	t.Fatalf("state %d", p.State())
}

// A promise from before the poll is no sign of life because its news took a while.
func TestPollAllowsForTheWay(t *testing.T) {
	k := Keys{T: TDefault, MayFence: true}
	p := NewPoll(0, 1, 0, three)
	asks, _ := p.Step(0, k)
	for _, a := range asks[:2] {
		p.Answered(40*time.Millisecond, a, Promise{Left: TDefault - 20*time.Millisecond})
	}
	if s := p.State(); s != PollRuns {
		t.Fatalf("state %d", s)
	}
}

// A withdrawal of a former leader's poll counts in the next.
func TestPollFindsWithdrawals(t *testing.T) {
	p := NewPoll(0, 1, 0, three)
	asks, _ := p.Step(0, Keys{T: TDefault})
	p.Answered(0, asks[0], Promise{Withdrawn: true})
	p.Answered(0, asks[2], Promise{Withdrawn: true})
	if p.State() != PollAgreed {
		t.Fatal(p.State())
	}
}

// A server that has no promise, and then says nothing any more (its disk hangs
// over the withdrawal), holds nobody up: another one's withdrawal and the third's
// make the majority, in whichever rounds they come.
func TestPollWithAServerThatFallsSilent(t *testing.T) {
	servers := map[string]*Server{}
	for _, id := range three {
		servers[id] = NewServer(0, nil, true)
	}
	p := NewPoll(0, 1, 0, three)
	for now := time.Duration(0); now < TDefault; now += time.Millisecond {
		asks, _ := p.Step(now, Keys{Dead: true, T: TDefault, MayFence: true})
		for _, a := range asks {
			switch {
			case a.Server == "b" && (a.Withdraw || a.round > 1):
			case a.Server == "c" && a.round == 1: // comes late
			case a.Withdraw:
				p.Answered(now, a, servers[a.Server].Withdraw(now, 1))
			default:
				p.Answered(now, a, servers[a.Server].Promise(now, 1))
			}
		}
		if p.State() == PollAgreed {
			return
		}
	}
	t.Fatal("two of three servers would withdraw, and the poll does not agree")
}

// A worker that wakes up between the answers and the request to withdraw, or before
// a majority has withdrawn, renews with a majority: the poll says so, rather than go
// on for as long as the worker lives.
func TestPollOfAWorkerThatComesBack(t *testing.T) {
	for _, withdrawn := range []int{0, 1} {
		t.Run(fmt.Sprintf("%d withdrew", withdrawn), func(t *testing.T) { testPollOfAWorkerThatComesBack(t, withdrawn) })
	}
}

func testPollOfAWorkerThatComesBack(t *testing.T, withdrawn int) {
	facts := Facts{Current: true, CaughtUp: true}
	servers := map[string]*Server{}
	for _, id := range three {
		servers[id] = NewServer(0, nil, true)
	}
	k := Keys{Dead: true, T: TDefault, MayFence: true}
	p := NewPoll(0, 1, 0, three)
	awake := false
	for now := time.Duration(0); now < 3*TDefault; now += time.Millisecond {
		asks, _ := p.Step(now, k)
		for _, a := range asks {
			awake = awake || a.Withdraw && a.Server == three[withdrawn]
			if awake {
				servers[a.Server].Grant(now, Renewal{Incarnation: 1, T: k.T}, facts)
			}
			got := servers[a.Server].Promise(now, 1)
			if a.Withdraw {
				got = servers[a.Server].Withdraw(now, 1)
			}
			p.Answered(now, a, got)
		}
		if p.State() == PollAlive {
			return
		}
	}
	t.Fatalf("awake: %v, and the poll is in state %d", awake, p.State())
}

// One server's promise does not make a worker alive, however late the others answer
// that they have none.
func TestPollCountsPromisesOnly(t *testing.T) {
	k := Keys{T: TDefault, MayFence: true}
	p := NewPoll(0, 1, 0, three)
	p.Step(0, k)
	asks, _ := p.Step(2*TDefault, k)
	p.Answered(2*TDefault, asks[0], Promise{Withdrawn: true})
	p.Answered(2*TDefault, asks[1], Promise{})
	p.Answered(2*TDefault, asks[2], Promise{Left: TDefault})
	if s := p.State(); s == PollAlive {
		t.Fatal("a worker with one promise is taken to be alive")
	}
}

// L4, L5: why a server does not grant, and that only two of the reasons end the
// incarnation.
func TestGrant(t *testing.T) {
	good := Facts{Logged: 5, Applied: 5, Current: true, CaughtUp: true}
	ren := Renewal{Incarnation: 7, T: TDefault, Config: 5}
	for name, c := range map[string]struct {
		change func(f *Facts, r *Renewal, s *Server)
		want   wire.Code
	}{
		"good":            {func(*Facts, *Renewal, *Server) {}, wire.Code_OK},
		"later in log":    {func(f *Facts, _ *Renewal, _ *Server) { f.Logged = 6 }, wire.Code_LEASE_OTHER_CONFIG},
		"later applied":   {func(f *Facts, _ *Renewal, _ *Server) { f.Logged, f.Applied = 6, 6 }, wire.Code_LEASE_OTHER_CONFIG},
		"not applied yet": {func(f *Facts, _ *Renewal, _ *Server) { f.Applied = 4 }, wire.Code_LEASE_BEHIND},
		"unknown yet":     {func(f *Facts, _ *Renewal, _ *Server) { f.Current = false }, wire.Code_LEASE_BEHIND},
		"replaying":       {func(f *Facts, _ *Renewal, _ *Server) { f.CaughtUp = false }, wire.Code_LEASE_BEHIND},
		"fenced":          {func(f *Facts, _ *Renewal, _ *Server) { f.Current, f.Past = false, true }, wire.Code_WORKER_FENCED},
		"withdrawn":       {func(_ *Facts, _ *Renewal, s *Server) { s.Withdraw(0, 7) }, wire.Code_LEASE_WITHDRAWN},
		"too long":        {func(_ *Facts, r *Renewal, _ *Server) { r.T = TMax + 1 }, wire.Code_BAD_REQUEST},
		"too short":       {func(_ *Facts, r *Renewal, _ *Server) { r.T = TMin - 1 }, wire.Code_BAD_REQUEST},
	} {
		t.Run(name, func(t *testing.T) {
			f, r, s := good, ren, NewServer(0, nil, true)
			c.change(&f, &r, s)
			code := s.Grant(0, r, f)
			over := Grant{Code: code}.Over()
			if code != c.want || over != (code == wire.Code_WORKER_FENCED || code == wire.Code_LEASE_WITHDRAWN) {
				t.Fatalf("%v, over %v", code, over)
			}
			if promised := s.Promise(0, 7).Left > 0; promised != (code == wire.Code_OK) {
				t.Fatalf("%v, and promised: %v", code, promised)
			}
		})
	}
}

// A lowered T does not take back a promise that runs; a restarted server waits
// for the longest there may be, and keeps its withdrawals.
func TestServerKeepsItsWord(t *testing.T) {
	s := NewServer(0, nil, true)
	f := Facts{Current: true, CaughtUp: true}
	s.Grant(0, Renewal{Incarnation: 7, T: TMax}, f)
	s.Grant(0, Renewal{Incarnation: 7, T: TMin}, f)
	if p := s.Withdraw(TMax-1, 7); p.Withdrawn || p.Left != 1 {
		t.Fatalf("%+v", p)
	}
	s = NewServer(time.Hour, []uint64{3}, false)
	if p := s.Withdraw(time.Hour+TMax-1, 7); p.Withdrawn || !p.Quiet {
		t.Fatalf("%+v", p)
	}
	if code := s.Grant(time.Hour, Renewal{Incarnation: 3, T: TMin}, f); code != wire.Code_LEASE_WITHDRAWN {
		t.Fatal(code)
	}
	if p := s.Withdraw(time.Hour+TMax, 7); !p.Withdrawn {
		t.Fatalf("%+v", p)
	}
}

// L1 and L6 at the worker: D counts from the majority-th latest send, a grant of
// another configuration or an unknown nonce counts for nothing, and without a
// leader in touch the worker only asks, until one answers.
func TestHolder(t *testing.T) {
	const T = TDefault
	var h Holder
	h.Begin(7, 0)
	h.SetVoters(1, three)
	first := h.Renew(0, T)
	second := h.Renew(T/4, T)
	grant := func(r Renewal, leads bool) {
		h.Receive(Grant{Server: r.Server, Nonce: r.Nonce, T: r.T, Code: wire.Code_OK, Leads: leads})
	}
	grant(second[0], false)
	if _, ok := h.Left(7, T/4); ok {
		t.Fatal("a lease by one of three")
	}
	grant(first[1], true)
	if d, ok := h.Until(); !ok || d != Shrink(T)-Margin {
		t.Fatalf("until %v, want %v", d, Shrink(T)-Margin)
	}
	if _, ok := h.Left(8, 0); ok {
		t.Fatal("a lease of another incarnation")
	}
	h.SetVoters(2, three)
	grant(second[1], false)
	if d, _ := h.Until(); d != Shrink(T)-Margin {
		t.Fatal("grants were counted across configurations")
	}
	late := SilenceLeases*T + 1
	probes := h.Renew(late, T)
	if len(probes) != len(three) || probes[0].T != 0 {
		t.Fatalf("without a leader it sends %+v", probes)
	}
	grant(probes[0], true)
	if h.Renew(late, T)[0].T != T {
		t.Fatal("a leader was heard, and it still does not renew")
	}
	if h.Receive(Grant{Server: "a", Nonce: 1 << 40, Code: wire.Code_WORKER_FENCED}) {
		t.Fatal("an answer to nothing ended the incarnation")
	}
}
