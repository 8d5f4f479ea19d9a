// A thread's 8 times 4 sums to where they belong.
fn write(row: u32, first: u32, count: u32, tx: u32, ty: u32, sums: ptr<function, array<f32, 32>>) {
    for (var r = 0u; r < 8u; r++) {
        let to = row + tx + 8u * r;
        for (var c = 0u; c < 4u; c++) {
            let i = first + ty + 8u * c;
            if (i < count && to < p.rows) {
                finish(i, to, (*sums)[r * 4u + c]);
            }
        }
    }
}
