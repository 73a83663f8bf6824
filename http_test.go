package replication_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// Over HTTP a write that is not confirmed says where it stands, and one that was
// not appended for want of a lease says so.
func TestHTTPErrorsOfHotStandby(t *testing.T) {
	for _, tc := range []struct {
		err      error
		status   int
		code     string
		position uint64
	}{
		{fmt.Errorf("there: %w", &replication.UnconfirmedError{Position: 7, Reason: "no standby"}), http.StatusGatewayTimeout, "unconfirmed", 7},
		{fmt.Errorf("%w: %w", replication.ErrTimeout, replication.ErrNoLease), http.StatusServiceUnavailable, "no_lease", 0},
	} {
		w := httptest.NewRecorder()
		replication.WriteHTTPError(w, tc.err)
		require.Equal(t, tc.status, w.Code)
		var body struct {
			Error struct {
				Code     string
				Position uint64
			}
		}
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
		require.Equal(t, tc.code, body.Error.Code)
		require.Equal(t, tc.position, body.Error.Position)
	}
}
