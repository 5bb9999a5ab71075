package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/baton-cluster/baton"

	"github.com/baton-cluster/baton/test/jepsen-lite/history"
)

const (
	// readersPerHost read a shared register without a break from every client
	// host, so that some read is always under way when its owner is stopped, and
	// clients learn at different times that it has been replaced.
	readersPerHost = 2
	// readPause is short for the same reason.
	readPause = 4 * time.Millisecond
	// glancersPerHost read seldom. They do not notice that their owner is stopped,
	// and may ask it just before it goes on, long after it has been replaced. Only
	// what is the first that one asks then finds a lease that was looked at too soon.
	glancersPerHost = 6
	glancePause     = 1500 * time.Millisecond
)

// share has clients on all hosts attach to the lane's session: on each some
// readers, and on two of them a writer.
func (n *lane) share(ctx context.Context, rng *rand.Rand, wg *sync.WaitGroup) {
	for host := range n.load.clients {
		for range readersPerHost {
			n.guest(ctx, host, rng.Uint64(), wg, n.read)
		}
		for range glancersPerHost {
			n.guest(ctx, host, rng.Uint64(), wg, n.glance)
		}
		if host < 2 {
			n.guest(ctx, host, rng.Uint64(), wg, n.set)
		}
	}
}

// guest has one more client on a host do things to the session until the lane
// has had enough.
func (n *lane) guest(ctx context.Context, host int, seed uint64, wg *sync.WaitGroup, do func(*baton.Session, int, *rand.Rand)) {
	wg.Add(1)
	go func() {
		defer wg.Done()
		rng := rand.New(rand.NewPCG(seed, uint64(host)))
		rctx, cancel := context.WithTimeout(ctx, opLimit)
		s, err := n.load.clients[host].Resume(rctx, n.id, n.secret)
		cancel()
		if err != nil {
			if rctx.Err() == nil {
				n.load.complain("resume", n.id, err.Error())
			}
			return
		}
		client := n.load.number()
		for !n.spent(ctx) && s.Err() == nil {
			do(s, client, rng)
		}
		if why := s.Err(); why != nil {
			n.gone(client, why)
		}
	}()
}

func (n *lane) set(s *baton.Session, client int, rng *rand.Rand) {
	value := n.unique(rng)
	n.do(client, history.Op{Key: "r", Kind: history.Put, Arg: value}, func(ctx context.Context) (string, baton.Reply, error) {
		r, err := s.Put(ctx, "r", []byte(value))
		return "", r, err
	})
	pause(context.Background(), n.load.think+time.Duration(rng.Int64N(int64(2*n.load.think)+1)))
}

func (n *lane) glance(s *baton.Session, client int, rng *rand.Rand) {
	n.get(s, client, "r")
	pause(context.Background(), time.Duration(rng.Int64N(int64(2*glancePause))))
}

func (n *lane) read(s *baton.Session, client int, rng *rand.Rand) {
	n.get(s, client, "r")
	pause(context.Background(), time.Duration(rng.Int64N(int64(2*n.load.pace*float64(readPause)))))
}
