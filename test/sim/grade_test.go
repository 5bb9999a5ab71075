package sim

import (
	"math/rand/v2"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"
)

// grade is how much of the product a simulation runs, and how densely. Both have
// the same seeds, clients, ledgers, faults, disks and checks.
type grade struct {
	name string
	// light: the network brings its own connections in place of TLS and QUIC.
	light bool
	// calm is how long there is no trouble and little load between storms, in the
	// mean; 0: there is no calm but between two faults.
	calm time.Duration
	// idle is by how much clients wait longer in the calm.
	idle int
	// profiles and leases are drawn from.
	profiles []string
	leases   []time.Duration
}

var grades = map[string]grade{
	// whole: nodes as they ship, always under load.
	"whole": {name: "whole", idle: 1, profiles: []string{"lan"}, leases: []time.Duration{0}},
	// light: everything above TLS and QUIC, for many more hours, most of them calm:
	// what takes long to come about needs hours, and what is told needs faults. Long
	// timings cost less, so they are drawn more often.
	"light": {
		name: "light", light: true, calm: 9 * time.Minute, idle: 40,
		profiles: []string{"lan", "wan", "wan", "wan"},
		leases:   []time.Duration{0, time.Second, 2 * time.Second, 3 * time.Second, 5 * time.Second},
	},
}

// draw fixes what a seed leaves to chance in a grade.
func (g grade) draw(rng *rand.Rand) (profile string, lease time.Duration) {
	return g.profiles[rng.IntN(len(g.profiles))], g.leases[rng.IntN(len(g.leases))]
}

// host is a machine's network, as the grade has it.
func (w *world) host(ip string) seam.Network {
	if w.grade.light {
		return lightHost{w.net.host(ip)}
	}
	return w.net.host(ip)
}

// weather tells whether there is a storm.
type weather struct {
	storm  bool
	change chan struct{} // closed when that changes
}

// setStorm begins a storm or ends it.
func (w *world) setStorm(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.weather.storm == on {
		return
	}
	w.weather.storm = on
	close(w.weather.change)
	w.weather.change = make(chan struct{})
}

// pause sleeps for up to d, in the calm for longer, and reports whether it was not
// cut short.
func (w *world) pause(done <-chan struct{}, rng *rand.Rand, d time.Duration) bool {
	share := rng.Float64()
	for {
		w.mu.Lock()
		storm, change := w.weather.storm, w.weather.change
		w.mu.Unlock()
		wait := time.Duration(share * float64(d))
		if storm {
			change = nil // once begun, it is not drawn out
		} else {
			wait *= time.Duration(w.grade.idle)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
			return true
		case <-change:
			t.Stop()
		case <-done:
			t.Stop()
			return false
		}
	}
}

// config of a node, as far as the seed draws it.
func (w *world) drawn(cfg baton.Config) baton.Config {
	cfg.Profile, cfg.Lease = w.profile, w.lease
	return cfg
}
