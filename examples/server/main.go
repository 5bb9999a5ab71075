// Command server is a cluster of one node with an application of its own: it
// counts votes and pushes the count to the session's clients.
//
//	server NAME USER-ADDR MGMT-ADDR PKI-DIR DATA-DIR
package main

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/baton-cluster/baton"
)

func main() {
	mux := baton.KV()
	mux.Handle("vote", func(tx *baton.Tx, candidate []byte) ([]byte, error) {
		n, err := tx.Incr("votes/"+string(candidate), 1)
		if err != nil {
			return nil, err
		}
		return fmt.Append(nil, n), tx.Push(fmt.Appendf(nil, "%s has %d", candidate, n))
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	node, err := baton.Open(ctx, baton.Config{
		Name: os.Args[1], UserAddr: os.Args[2], MgmtAddr: os.Args[3], PKI: os.Args[4], Data: os.Args[5],
		Expect: 1, Mux: mux, Log: slog.Default(),
	})
	if err != nil {
		log.Fatal(err)
	}
	select {
	case <-ctx.Done():
		stop() // a second signal ends it at once
		err = node.Shutdown(context.Background())
	case <-node.Done(): // it has stopped by itself
		err = node.Err()
	}
	if err != nil {
		log.Fatal(err)
	}
}
