package raftnode

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"
)

// hashicorp/raft passes values of hclog.Fmt, which another logger does not know.
func TestLinesOfRaftAreFormatted(t *testing.T) {
	var out bytes.Buffer
	l := hclogAdapter(slog.New(slog.NewTextHandler(&out, nil)))
	l.With("list", hclog.Fmt("%d of %d", 1, 2)).Info("said", "servers", hclog.Fmt("%+v", []int{3}), "plain", 7)
	require.Contains(t, out.String(), `component=raft list="1 of 2" servers=[3] plain=7`)
}
