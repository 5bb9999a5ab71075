// Command migrate runs three nodes in one process, opens a session and moves it
// from node to node while it is called without a break. The application keeps
// what it holds in memory, too: here, how many calls each owner has served. Beside
// the calls a byte stream goes on from owner to owner (stream.go).
//
//	migrate [MOVES]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/baton-cluster/baton"
)

const host = "127.0.0.1"

func main() {
	moves := 6
	if len(os.Args) > 1 {
		n, err := strconv.Atoi(os.Args[1])
		if err != nil || n < 1 {
			log.Fatal("usage: migrate [MOVES]")
		}
		moves = n
	}
	dir, err := os.MkdirTemp("", "migrate-")
	if err != nil {
		log.Fatal(err)
	}
	err = run(dir, moves)
	_ = os.RemoveAll(dir)
	if err != nil {
		log.Fatal(err)
	}
}

func run(dir string, moves int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	nodes, users, err := openNodes(ctx, dir)
	defer func() {
		for _, n := range nodes {
			if n != nil {
				_ = n.Close()
			}
		}
	}()
	if err != nil {
		return err
	}
	client, err := baton.Dial(ctx, baton.ClientConfig{Addrs: users, PKI: filepath.Join(dir, "pki")})
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := client.Open(ctx, baton.OpenOptions{ID: "traveller"})
	if err != nil {
		return err
	}
	s.OnMove(func(m baton.Move) {
		fmt.Printf("moved from %s to %s, epoch %d, paused %v, gap %v\n", m.From.Name, m.To.Name, m.Epoch, m.Pause.Round(time.Microsecond), m.Gap)
	})

	stop, ended := make(chan struct{}), make(chan error, 2)
	var calls, bytes int
	go func() {
		var err error
		calls, err = call(ctx, s, stop)
		ended <- err
	}()
	go func() {
		var err error
		bytes, err = upload(ctx, s, stop)
		ended <- err
	}()
	for range moves {
		// Any node may ask; the cluster chooses where to.
		if _, err := nodes[0].Migrate(ctx, s.ID(), ""); err != nil {
			return err
		}
	}
	close(stop)
	if err := errors.Join(<-ended, <-ended); err != nil {
		return err
	}
	fmt.Printf("%d moves, %d calls, each applied once and counted by one owner after the other\n", moves, calls)
	fmt.Printf("%d bytes in one stream, read by one owner after the other\n", bytes)
	return s.Close(ctx)
}

// call calls until stop is closed, and checks that nothing is lost: neither of
// what is committed, nor of what is in memory only.
func call(ctx context.Context, s *baton.Session, stop chan struct{}) (int, error) {
	for n := 1; ; n++ {
		r, err := s.Call(ctx, "step", nil)
		if err != nil {
			return n, err
		}
		if want := fmt.Sprintf("%d committed, %d in memory", n, n); string(r.Payload) != want {
			return n, fmt.Errorf("%s answered %q, want %q", r.Node, r.Payload, want)
		}
		select {
		case <-stop:
			return n, nil
		default:
		}
	}
}

// tally is what the application holds in memory of a session.
type tally struct {
	Calls int
	Seq   uint64 // of the call counted last
}

// application counts calls twice: in the session's state, and in memory. What is
// in memory goes along with the session.
func application() *baton.Mux {
	var mu sync.Mutex
	served := map[string]tally{}
	mux := baton.KV()
	mux.HandleStream("digest", digest, baton.Resumable())
	mux.Handle("step", func(tx *baton.Tx, _ []byte) ([]byte, error) {
		n, err := tx.Incr("steps", 1)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		f := tx.Fence()
		t := served[f.Session]
		if f.Seq > t.Seq { // a handler may run again for a call that was not committed
			t = tally{t.Calls + 1, f.Seq}
			served[f.Session] = t
		}
		return fmt.Appendf(nil, "%d committed, %d in memory", n, t.Calls), nil
	})
	mux.OnFreeze(func(session string, _ baton.Fence) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		t := served[session]
		delete(served, session)
		return json.Marshal(t)
	})
	mux.OnResume(func(session string, _ uint64, live []byte, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		delete(served, session)
		var t tally
		if ok && json.Unmarshal(live, &t) == nil {
			served[session] = t
		}
	})
	return mux
}

// openNodes starts three nodes on free ports.
func openNodes(ctx context.Context, dir string) (nodes []*baton.Node, users []string, err error) {
	const size = 3
	pki := filepath.Join(dir, "pki")
	if err := baton.PKIInit(pki); err != nil {
		return nil, nil, err
	}
	var mgmt []string
	for i := range size {
		if err := baton.PKIIssue(pki, fmt.Sprintf("n%d", i+1), []string{host}); err != nil {
			return nil, nil, err
		}
		users, mgmt = append(users, freeAddr()), append(mgmt, freeAddr())
	}
	nodes = make([]*baton.Node, size)
	faults := make(chan error, size)
	for i := range nodes {
		go func() {
			var err error
			name := fmt.Sprintf("n%d", i+1)
			nodes[i], err = baton.Open(ctx, baton.Config{
				Name: name, Data: filepath.Join(dir, name), PKI: pki, UserAddr: users[i], MgmtAddr: mgmt[i],
				Join: mgmt, Expect: size, Profile: "local", Mux: application(),
			})
			faults <- err
		}()
	}
	for range nodes {
		err = errors.Join(err, <-faults)
	}
	return nodes, users, err
}

// freeAddr is an address that is free for TCP and UDP now.
func freeAddr() string {
	for {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			log.Fatal(err)
		}
		addr := l.Addr().String()
		p, err := net.ListenPacket("udp", addr)
		_ = l.Close()
		if err == nil {
			_ = p.Close()
			return addr
		}
	}
}
