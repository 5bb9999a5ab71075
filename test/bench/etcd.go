package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// etcdSide is three members of etcd, each this program run once more, with the
// settings that etcd's own program has by default.
type etcdSide struct {
	nodes
	clientURLs []string
	run        int // numbers the loads, so that their keys differ
}

func (e *etcdSide) name() string { return "etcd" }

func (e *etcdSide) start(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	bin, err := os.Executable()
	if err != nil {
		return err
	}
	ports, err := freePorts(2 * clusterSize)
	if err != nil {
		return err
	}
	var cluster []string
	for i := range clusterSize {
		e.clientURLs = append(e.clientURLs, "http://"+ports[i])
		cluster = append(cluster, fmt.Sprintf("m%d=http://%s", i+1, ports[clusterSize+i]))
	}
	for i := range clusterSize {
		name, peer, _ := strings.Cut(cluster[i], "=")
		if err := e.spawn(bin, []string{
			memberArg, "-name", name, "-dir", filepath.Join(dir, name),
			"-client", e.clientURLs[i], "-peer", peer, "-cluster", strings.Join(cluster, ","),
		}, filepath.Join(dir, name+".log")); err != nil {
			return err
		}
	}
	return e.await(ctx, func(ctx context.Context) error {
		_, err := e.leader(ctx)
		return err
	})
}

// dial makes one connection, to one member.
func (e *etcdSide) dial(i int) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{e.clientURLs[i%clusterSize]}, DialTimeout: askTime, Logger: zap.NewNop()})
}

// leader returns which member leads; an error unless all answer and agree.
func (e *etcdSide) leader(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	led := -1
	for i, url := range e.clientURLs {
		c, err := e.dial(i)
		if err != nil {
			return 0, err
		}
		st, err := c.Status(ctx, url)
		_ = c.Close()
		switch {
		case err != nil:
			return 0, err
		case st.Leader == 0 || len(st.Errors) > 0:
			return 0, fmt.Errorf("member %d has no leader: %v", i+1, st.Errors)
		case st.Leader == st.Header.GetMemberId():
			led = i
		}
	}
	if led < 0 {
		return 0, errors.New("the leader is not among the members")
	}
	return led, nil
}

// counters reads the members' metrics. A transaction of etcd's table of keys is
// synced too, but no request waits for it; both kinds are counted.
func (e *etcdSide) counters(ctx context.Context) (counters, error) {
	var c counters
	for _, url := range e.clientURLs {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
		if err != nil {
			return c, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return c, err
		}
		n, err := sumMetrics(resp.Body, "etcd_disk_wal_fsync_duration_seconds_count", "etcd_disk_backend_commit_duration_seconds_count")
		_ = resp.Body.Close()
		if err != nil {
			return c, err
		}
		c.LogWrites += n
	}
	return c, nil
}

// sumMetrics adds up the values of metrics without labels.
func sumMetrics(r io.Reader, names ...string) (uint64, error) {
	var sum uint64
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		name, value, _ := strings.Cut(sc.Text(), " ")
		for _, want := range names {
			if name != want {
				continue
			}
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, fmt.Errorf("metric %s: %w", name, err)
			}
			sum += uint64(v)
		}
	}
	return sum, sc.Err()
}

// etcdLoad is clients that share connections, each with a key of its own.
type etcdLoad struct {
	value string
	conns []*clientv3.Client
	keys  []string
}

func (e *etcdSide) load(ctx context.Context, clients, conns, after int, value []byte) (load, error) {
	first, err := e.leader(ctx)
	if err != nil {
		return nil, err
	}
	e.run++
	l := &etcdLoad{value: string(value)}
	for i := range conns {
		c, err := e.dial(first + after + i)
		if err != nil {
			l.close()
			return nil, err
		}
		l.conns = append(l.conns, c)
	}
	for i := range clients {
		l.keys = append(l.keys, fmt.Sprintf("bench-%d-%d", e.run, i))
		if err := l.put(ctx, i); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

func (l *etcdLoad) do(op string) func(ctx context.Context, client int) error {
	switch op {
	case opPut, opPut1, opPutFollower:
		return l.put
	case opGet, opGetLog:
		return l.get
	}
	return nil
}

func (l *etcdLoad) put(ctx context.Context, client int) error {
	_, err := l.conns[client%len(l.conns)].Put(ctx, l.keys[client], l.value)
	return err
}

func (l *etcdLoad) get(ctx context.Context, client int) error {
	r, err := l.conns[client%len(l.conns)].Get(ctx, l.keys[client])
	if err == nil && (len(r.Kvs) != 1 || len(r.Kvs[0].Value) != len(l.value)) {
		err = fmt.Errorf("a get found %d keys", len(r.Kvs))
	}
	return err
}

func (l *etcdLoad) close() {
	for _, c := range l.conns {
		_ = c.Close()
	}
}
