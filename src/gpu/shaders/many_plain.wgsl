// As many_bytes.wgsl, with numbers. Tile is what shared memory holds of a weight: f32, or f16 where there is such a thing and the
// weights have no more to tell.
@group(0) @binding(6) var<storage, read> x_values: array<vec4<f32>>;

var<workgroup> w_tile: array<Tile, 2048>; // [column][weight row]
var<workgroup> x_tile: array<f32, 1024>; // [column][row]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let count = flow[p.count];
    let row = group.x * 64u;
    let first = group.y * 32u;
    let tx = thread % 8u;
    let ty = thread / 8u;
    let start = min(row + thread, p.rows - 1u) * p.pieces;
    let mine = min(first + thread / 2u, max(count, 1u) - 1u) * p.x_stride;
    var sums: array<f32, 32>;
    for (var j = 0u; j < 32u; j++) {
        sums[j] = 0.0;
    }
    for (var at = 0u; at < p.pieces; at++) {
        let v = numbers(start + at);
        for (var i = 0u; i < 8u; i++) {
            for (var l = 0u; l < 4u; l++) {
                w_tile[(4u * i + l) * 64u + thread] = Tile(v[i][l]);
            }
        }
        let half = thread & 1u;
        for (var i = 4u * half; i < 4u * half + 4u; i++) {
            let values = x_values[8u * (mine + at) + i];
            for (var l = 0u; l < 4u; l++) {
                x_tile[(4u * i + l) * 32u + thread / 2u] = values[l];
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < 32u; i++) {
            var a: array<f32, 4>;
            for (var c = 0u; c < 4u; c++) {
                a[c] = x_tile[i * 32u + ty + 8u * c];
            }
            for (var r = 0u; r < 8u; r++) {
                let weight = f32(w_tile[i * 64u + tx + 8u * r]);
                for (var c = 0u; c < 4u; c++) {
                    sums[r * 4u + c] += weight * a[c];
                }
            }
        }
        workgroupBarrier();
    }
    write(row, first, count, tx, ty, &sums);
}
