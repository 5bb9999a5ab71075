package baton_test

import (
	"context"
	"encoding/binary"
	"io"
	"testing"

	"github.com/baton-cluster/baton"
)

// BenchmarkStream is the throughput of one byte stream over loopback, and what a
// call beside it costs.
func BenchmarkStream(b *testing.B) {
	c := startCluster(b, func() *baton.Mux {
		m := baton.KV()
		m.HandleStream("sink", func(st *baton.ServerStream) error {
			_, err := io.Copy(io.Discard, st)
			return err
		})
		m.HandleStream("source", func(st *baton.ServerStream) error {
			buf := make([]byte, 64<<10)
			for left := int(binary.BigEndian.Uint64(st.Argument())); left > 0; left -= len(buf) {
				if _, err := st.Write(buf[:min(left, len(buf))]); err != nil {
					return err
				}
			}
			return nil
		})
		return m
	})
	ctx := context.Background()
	s, err := c.client().Open(ctx, baton.OpenOptions{})
	must(b, err)
	const size = 1 << 20
	b.Run("up", func(b *testing.B) {
		b.SetBytes(size)
		st, err := s.OpenStream(ctx, "sink", nil)
		must(b, err)
		buf := make([]byte, size)
		for b.Loop() {
			_, err := st.Write(buf)
			must(b, err)
		}
		must(b, st.CloseWrite())
		_, err = io.Copy(io.Discard, st)
		must(b, err)
	})
	b.Run("down", func(b *testing.B) {
		b.SetBytes(size)
		st, err := s.OpenStream(ctx, "source", binary.BigEndian.AppendUint64(nil, 1<<62))
		must(b, err)
		buf := make([]byte, size)
		for b.Loop() {
			_, err := io.ReadFull(st, buf)
			must(b, err)
		}
		must(b, st.Close())
	})
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			st, err := s.OpenStream(ctx, "sink", nil)
			must(b, err)
			must(b, st.CloseWrite())
			_, err = io.Copy(io.Discard, st)
			must(b, err)
		}
	})
}
