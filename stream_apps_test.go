package baton_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/wire"
)

// streamMux has byte streams of all kinds:
//
//	upload    resumable: hashes what comes, and says the hash; its cookie is the hash's state
//	download  resumable: writes as many bytes as the argument says, of noise
//	mirror    resumable: writes back what it reads
//	words     messages each way, resumable: answers each message with its number
//	fragile   not resumable: echoes
//	fail      returns an error after a few bytes
func streamMux() *baton.Mux {
	m := baton.KV()
	m.HandleStream("upload", upload, baton.Resumable())
	m.HandleStream("download", download, baton.Resumable())
	m.HandleStream("mirror", echoStream, baton.Resumable())
	m.HandleStream("words", words, baton.Resumable())
	m.HandleStream("fragile", func(st *baton.ServerStream) error {
		_, err := io.Copy(st, st)
		return err
	})
	m.HandleStream("fail", func(st *baton.ServerStream) error {
		if _, err := io.WriteString(st, "so far"); err != nil {
			return err
		}
		return baton.Errorf(wire.Code_HANDLER_ERROR, "no further")
	})
	return m
}

type marshaler interface {
	hash.Hash
	MarshalBinary() ([]byte, error)
	UnmarshalBinary([]byte) error
}

func upload(st *baton.ServerStream) error {
	h := sha256.New().(marshaler)
	if cookie, _ := st.Resumed(); len(cookie) > 0 {
		if err := h.UnmarshalBinary(cookie); err != nil {
			return err
		}
	}
	buf := make([]byte, 10_000)
	for {
		n, err := st.Read(buf)
		h.Write(buf[:n])
		cookie, merr := h.MarshalBinary()
		if merr != nil {
			return merr
		}
		if aerr := st.Ack(st.ReadOffset(), cookie); aerr != nil {
			return aerr
		}
		if err == io.EOF {
			_, err = fmt.Fprintf(st, "%x", h.Sum(nil))
			return err
		}
		if err != nil {
			return err
		}
	}
}

// noise is the i-th block of a stream of noise.
func noise(block uint64) []byte {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], block)
	b := make([]byte, 4096)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

func download(st *baton.ServerStream) error {
	size := binary.BigEndian.Uint64(st.Argument())
	for at := st.WriteOffset(); at < size; at = st.WriteOffset() {
		b := noise(at / 4096)[at%4096:]
		if _, err := st.Write(b[:min(uint64(len(b)), size-at)]); err != nil {
			return err
		}
	}
	return nil
}

// echoStream acknowledges what it has written back. One that is stopped within a
// Write counts what was taken.
func echoStream(st *baton.ServerStream) error {
	buf := make([]byte, 7_777)
	for {
		n, rerr := st.Read(buf)
		before := st.ReadOffset() - uint64(n)
		w, werr := st.Write(buf[:n])
		if err := st.Ack(before+uint64(w), nil); err != nil {
			return err
		}
		switch {
		case rerr == io.EOF && werr == nil:
			return nil
		case rerr != nil:
			return rerr
		case werr != nil:
			return werr
		}
	}
}

func words(st *baton.ServerStream) error {
	var count uint64
	if cookie, again := st.Resumed(); again && len(cookie) == 8 {
		count = binary.BigEndian.Uint64(cookie)
	}
	for {
		m, err := st.RecvMessage()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := st.SendMessage(fmt.Appendf(nil, "%d: %s", count+1, m)); err != nil {
			return err // nothing was sent: the successor reads m again
		}
		count++
		if err := st.Ack(st.ReadOffset(), binary.BigEndian.AppendUint64(nil, count)); err != nil {
			return err
		}
	}
}

// mover moves a session back and forth until it is told to stop.
type mover struct {
	stop chan struct{}
	done chan error
	n    atomic.Int64

	halted bool
}

func (c *testCluster) keepMoving(ctx context.Context, s *baton.Session, names ...string) *mover {
	m := &mover{stop: make(chan struct{}), done: make(chan error, 1)}
	at := s.Owner().Name
	go func() {
		for i := 0; ; i++ {
			select {
			case <-m.stop:
				m.done <- nil
				return
			default:
			}
			to := names[i%len(names)]
			if to == at {
				continue
			}
			at = to
			if err := c.migrate(ctx, s.ID(), to); err != nil {
				m.done <- err
				return
			}
			m.n.Add(1)
		}
	}()
	return m
}

// waitFor waits until there were as many moves.
func (m *mover) waitFor(ctx context.Context, moves int64) {
	for m.n.Load() < moves && ctx.Err() == nil && len(m.done) == 0 {
		time.Sleep(5 * time.Millisecond)
	}
}

// halt may be called again.
func (m *mover) halt(t *testing.T) int {
	if m.halted {
		return 0
	}
	m.halted = true
	t.Helper()
	close(m.stop)
	must(t, <-m.done)
	return int(m.n.Load())
}

const streamBytes = 8 << 20

// transferAll runs an upload, a download and an echo at once, and compares hashes.
func transferAll(t *testing.T, ctx context.Context, s *baton.Session, size int) {
	t.Helper()
	startAll(t, ctx, s, size)()
}

// startAll returns when all three are under way; what it returns waits for them.
func startAll(t *testing.T, ctx context.Context, s *baton.Session, size int) (wait func()) {
	t.Helper()
	errs := make(chan error, 3)
	for method, run := range map[string]func(*baton.Stream, int) error{"upload": runUpload, "download": runDownload, "mirror": runEcho} {
		st, err := s.OpenStream(ctx, method, binary.BigEndian.AppendUint64(nil, uint64(size)))
		must(t, err)
		go func() {
			defer st.Close()
			errs <- run(st, size)
		}()
	}
	return func() {
		t.Helper()
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
}

func runUpload(st *baton.Stream, size int) error {
	h := sha256.New()
	for block := uint64(0); int(block)*4096 < size; block++ {
		b := noise(block)
		h.Write(b)
		if _, err := st.Write(b); err != nil {
			return fmt.Errorf("upload, block %d: %w", block, err)
		}
	}
	if err := st.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(st)
	if want := fmt.Sprintf("%x", h.Sum(nil)); err != nil || string(got) != want {
		return fmt.Errorf("upload: the server's hash is %q, want %s: %w", got, want, err)
	}
	return nil
}

func runDownload(st *baton.Stream, size int) error {
	got, err := io.ReadAll(st)
	if err != nil {
		return fmt.Errorf("download, after %d bytes: %w", len(got), err)
	}
	return isNoise("download", got, size)
}

func isNoise(what string, got []byte, size int) error {
	if len(got) != size {
		return fmt.Errorf("%s: %d bytes, want %d", what, len(got), size)
	}
	for block := 0; block*4096 < size; block++ {
		part := got[block*4096 : min(size, block*4096+4096)]
		if !bytes.Equal(part, noise(uint64(block))[:len(part)]) {
			return fmt.Errorf("%s: block %d is wrong", what, block)
		}
	}
	return nil
}

func runEcho(st *baton.Stream, size int) error {
	sent := make(chan error, 1)
	go func() {
		for block := uint64(0); int(block)*4096 < size; block++ {
			if _, err := st.Write(noise(block)); err != nil {
				sent <- err
				return
			}
		}
		sent <- st.CloseWrite()
	}()
	got, err := io.ReadAll(st)
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("echo, after %d bytes: %w", len(got), err)
	}
	return isNoise("echo", got, size)
}
