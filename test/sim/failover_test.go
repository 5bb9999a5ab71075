package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/lease"
)

// patience bounds what a scene waits for, in virtual time.
const patience = time.Minute

// stage is a cluster that is well, with a client, for one scene.
type stage struct {
	*world
	admin *baton.Admin
	c     *client
	// other is a second client: a query waits for its own client's writes.
	other *client
}

// scene runs one story in a bubble of its own. Its clocks drift as in the other
// simulations.
func scene(t *testing.T, play func(s *stage)) { sceneOf(t, grades["whole"], play) }

func sceneOf(t *testing.T, g grade, play func(s *stage)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, g)
		defer w.close()
		for i, m := range w.machines {
			if i == votersCount {
				time.Sleep(forming)
			}
			m.boot()
		}
		s := &stage{world: w, admin: w.admin()}
		defer func() { _ = s.admin.Close() }()
		s.healthy()
		s.c, s.other = w.newClient(0), w.newClient(1)
		play(s)
		for _, v := range w.violate {
			t.Error(v)
		}
		if t.Failed() {
			t.Log("what happened:\n" + w.story())
		}
	})
}

func (s *stage) healthy() {
	s.t.Helper()
	must(s.t, s.awaitHealthy(s.admin))
}

func (s *stage) status() baton.Status {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st, err := s.admin.Status(ctx)
	must(s.t, err)
	return st
}

// named is a machine by the name of its node.
func (s *stage) named(name string) *machine {
	i := slices.IndexFunc(s.machines, func(m *machine) bool { return m.name == name })
	if i < 0 {
		s.t.Fatalf("there is no machine %q", name)
	}
	return s.machines[i]
}

// leader and followers are the machines of those that vote.
func (s *stage) leader() *machine { return s.named(s.status().Leader) }

func (s *stage) followers() (all []*machine) {
	st := s.status()
	for _, n := range st.Nodes {
		if n.Voter && n.Name != st.Leader {
			all = append(all, s.named(n.Name))
		}
	}
	return all
}

// openAt opens a session and has it served by m.
func (s *stage) openAt(id string, m *machine, ttl time.Duration) *baton.Session {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	session, err := s.c.c.Open(ctx, baton.OpenOptions{ID: id, TTL: ttl, Shared: true})
	must(s.t, err)
	if session.Owner().Name != m.name {
		_, err = s.admin.Migrate(ctx, baton.MigrateRequest{Session: id, To: m.name})
		must(s.t, err)
	}
	_, err = session.Call(ctx, "bump", nil)
	must(s.t, err)
	return session
}

// again attaches the other client to the session.
func (s *stage) again(session *baton.Session) *baton.Session {
	s.t.Helper()
	r, err := s.other.c.Resume(s.other.within(patience), session.ID(), session.Secret())
	must(s.t, err)
	return r
}

// read is one answer, or none, to a query.
type read struct {
	sent, came time.Time
	v          baton.Value
	err        error
}

func (r read) String() string {
	return fmt.Sprintf("sent at %v, after %v by %s in epoch %d, leased %v: %v", r.sent.Format("05.000"), r.came.Sub(r.sent), r.v.Owner, r.v.Epoch, r.v.Leased, r.err)
}

// readEvery is how far apart the queries of a scene are.
const readEvery = 10 * time.Millisecond

// reading asks the session without a break until the returned function is
// called, which returns all answers.
func (s *stage) reading(session *baton.Session) (stop func() []read) {
	ctx, cancel := context.WithCancel(context.Background())
	var all []read
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			r := read{sent: time.Now()}
			r.v, r.err = session.Get(s.c.within(callTime), counterKey)
			r.came = time.Now()
			all = append(all, r)
			time.Sleep(readEvery)
		}
	})
	return func() []read {
		cancel()
		done.Wait()
		return all
	}
}

// bump writes once, however long it takes within patience, and tells how long
// that was.
func (s *stage) bump(session *baton.Session) time.Duration {
	s.t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := session.Call(ctx, "bump", nil)
	must(s.t, err)
	return time.Since(began)
}

// prompt is longer than any answer under a lease takes on a good network, and
// far shorter than an election.
const prompt = 20 * time.Millisecond

// TestReadsRideThroughElections: the leader crashes, without a word. The sessions
// of the other workers are read all the while, from memory, under their leases;
// what is written waits for the election, and is done then.
func TestReadsRideThroughElections(t *testing.T) {
	scene(t, func(s *stage) {
		leader := s.leader()
		var stops []func() []read
		sessions := map[string]*baton.Session{}
		for _, m := range s.machines {
			if m != leader {
				session := s.openAt("of-"+m.name, m, time.Hour)
				sessions[m.name] = s.again(session)
				stops = append(stops, s.reading(session))
			}
		}
		time.Sleep(2 * time.Second)
		crashed := time.Now()
		s.note("crash the leader, %s", leader.name)
		leader.stop(false)
		var took time.Duration
		for name, session := range sessions {
			took = max(took, s.bump(session))
			s.note("a write at %s is done", name)
		}
		if took < 100*time.Millisecond {
			t.Errorf("a write was done %v after the leader's crash: there was no election to ride through", took)
		}
		// Leases are renewed without a leader for as long: a longer election may end
		// them, which is as it should be.
		until := crashed.Add(min(took, lease.SilenceLeases*lease.TDefault))
		time.Sleep(2 * time.Second)
		for _, stop := range stops {
			meanwhile := 0
			for _, r := range stop() {
				if r.came.Before(crashed) || r.sent.After(until) {
					continue
				}
				meanwhile++
				if r.err != nil || !r.v.Leased || r.came.Sub(r.sent) > prompt {
					s.violation("a read %v", r)
				}
			}
			if least := int(until.Sub(crashed) / (2 * readEvery)); meanwhile < least {
				s.violation("%d reads while there was no leader for %v", meanwhile, took)
			}
		}
		t.Logf("without a leader for %v", took)
	})
}

// TestFailoverAcrossDistances: the nodes are as far apart as the profile for that
// allows. One dies, a follower or the leader; its session is served by another, and
// what was written is there.
func TestFailoverAcrossDistances(t *testing.T) {
	far := grades["whole"]
	far.profiles = []string{"wan"}
	for _, which := range []string{"a follower", "the leader"} {
		t.Run(which, func(t *testing.T) {
			sceneOf(t, far, func(s *stage) {
				for _, a := range s.machines {
					for _, b := range s.machines {
						if a != b {
							s.net.shape(a.ip, b.ip, func(l *link) { l.delay = 75 * time.Millisecond })
						}
					}
				}
				s.healthy()
				dies := s.leader()
				if which == "a follower" {
					dies = s.followers()[0]
				}
				session := s.openAt("far", dies, time.Hour)
				before := session.Epoch()
				s.note("crash %s, %s", which, dies.name)
				dies.stop(false)
				took := s.bump(session)
				if session.Epoch() <= before || session.Owner().Name == dies.name {
					t.Errorf("owner %s in epoch %d, before %d", session.Owner().Name, session.Epoch(), before)
				}
				v, err := session.Get(s.c.within(callTime), counterKey)
				must(t, err)
				if string(v.Value) != "2" {
					t.Errorf("%q, and it was counted up once before the crash and once after", v.Value)
				}
				t.Logf("served by another after %v", took)
			})
		})
	}
}

// TestDownForLong: a node that was down for long works again about as soon as one that
// was down for a moment, also if much was written while it was away.
func TestDownForLong(t *testing.T) {
	for _, written := range []int{0, 2000} {
		t.Run(fmt.Sprint(written, " entries"), func(t *testing.T) {
			scene(t, func(s *stage) {
				m, other := s.followers()[0], s.leader()
				session := s.openAt("busy", other, time.Hour)
				for _, down := range []time.Duration{3 * time.Second, 12 * time.Second, 30 * time.Second} {
					m.stop(true)
					until := time.Now().Add(down)
					for range written {
						_, err := session.Put(s.c.within(patience), "k", nil)
						must(t, err)
					}
					time.Sleep(time.Until(until))
					began := time.Now()
					m.boot()
					for n := s.find(m); n.State != "active" || len(n.Faults) > 0; n = s.find(m) {
						time.Sleep(readEvery)
					}
					took := time.Since(began)
					t.Logf("down for %v, active after %v", down, took)
					if took > 4*time.Second {
						t.Errorf("down for %v, active %v after its start", down, took)
					}
				}
			})
		})
	}
}

// find is what the cluster says of a machine's node.
func (s *stage) find(m *machine) baton.NodeStatus {
	for _, n := range s.status().Nodes {
		if n.Name == m.name {
			return n
		}
	}
	return baton.NodeStatus{}
}
